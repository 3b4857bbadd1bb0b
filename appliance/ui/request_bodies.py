"""Limit the bodies of requests to demos (uploaded files and event data).

Gradio accepts bodies of any size from everyone, keeps form fields in memory, and does not remove
the files of aborted uploads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from pathlib import Path
from typing import Final, NamedTuple

from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.domain.errors import (
    ApplianceError,
    BodyTooLarge,
    FileQuotaExceeded,
    MalformedBody,
    NotFound,
)

_log = logging.getLogger(__name__)

_FORM_OVERHEAD: Final = 256 * 1024  # bytes of a form in addition to its files
_ABANDONED: Final = 3600.0  # seconds after which the file of an unfinished upload is removed
_FAILED: Final = "The page failed to handle this request: the reason is in the output of `appliance demo`."
_FORM: Final = "multipart/form-data"
_BOUNDARY: Final = re.compile(r";\s*boundary=(\"[^\"]{1,200}\"|[^\s\";]{1,200})", re.IGNORECASE)


class BodyLimits(NamedTuple):
    """Limits on bodies in bytes, and the names of the settings that raise them, for error messages."""

    body: int  # of a request without files
    upload: int  # files uploaded together
    quota: int  # all uploaded files
    body_setting: str
    upload_setting: str
    quota_setting: str


class RequestBodies:
    """Forwards requests to pages, and limits the size of the bodies."""

    def __init__(self, folder: Path, limits: BodyLimits) -> None:
        """``folder`` is the folder in which Gradio stores uploaded files."""
        self._folder = folder
        self._limits = limits
        self._arriving = 0  # maximum total size in bytes of unfinished uploads

    async def forward(self, app: ASGIApp, request: Request, scope: Scope, send: Send) -> None:
        """Forward a request to ``app`` with the ASGI scope ``scope``.

        Raises:
            ApplianceError: the body is too large, or invalid.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            refusal: ApplianceError = BodyTooLarge(
                f"The request body is larger than {self._limits.body:,} bytes ({self._limits.body_setting})"
            )
            await _limited(app, scope, request.receive, send, self._limits.body, refusal)
            return
        most = self._limits.upload + _FORM_OVERHEAD
        expected = self._admitted(request, most)
        taken = await asyncio.to_thread(_disk_use, self._folder) + self._arriving
        if taken + expected > self._limits.quota:
            raise FileQuotaExceeded(
                f"Files uploaded in the UI use {taken:,} of the {self._limits.quota:,} bytes that they "
                f"may use ({self._limits.quota_setting}): try again when old uploads have been removed"
            )
        self._arriving += expected
        try:
            await _limited(app, scope, request.receive, send, expected, self._too_large())
        finally:
            self._arriving -= expected

    def _admitted(self, request: Request, most: int) -> int:
        """Return the maximum size of this upload in bytes: its Content-Length, or ``most`` without one.

        Raises:
            ApplianceError: the path takes no files, or the request is invalid.
        """
        if not request.url.path.endswith("/upload"):
            raise NotFound("Forms with files are not accepted at this path.")
        if not _BOUNDARY.search(request.headers["content-type"]):
            raise MalformedBody("The request body must be multipart/form-data with a boundary")
        length = request.headers.get("content-length", "")
        expected = int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else most
        if expected > most:
            raise self._too_large()
        return expected

    def _too_large(self) -> ApplianceError:
        return BodyTooLarge(
            f"Files uploaded together must have less than {self._limits.upload:,} bytes in all "
            f"({self._limits.upload_setting})"
        )


class _Response:
    """Forwards the response of a page, except a plain-text error, which ``_limited`` replaces with JSON."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.refused: int | None = None  # status of a plain-text error, which is not forwarded
        self.text = b""
        self.dropped = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400 and _is_plain(message):
            self.refused = message["status"]
        elif self.refused is not None:
            self.text += message.get("body", b"")
        if self.refused is None and not self.dropped:
            self.begun = True
            await self._send(message)


async def _limited(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, most: int, refusal: ApplianceError
) -> None:
    """Forward a request of at most ``most`` bytes to ``app``.

    Raises:
        ApplianceError: ``refusal`` if the body is larger; other errors if the body is invalid text or ``app``
            fails.
    """
    received, response = 0, _Response(send)

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            response.dropped = True
            raise MultiPartException(refusal.detail)  # makes Gradio close the files of the form
        return message

    try:
        await app(scope, counted, response.send)
    except Exception as error:
        if response.begun:
            raise
        if response.dropped:
            raise refusal from error
        if isinstance(error, UnicodeEncodeError):  # FastAPI cannot encode the refused value in its error
            raise MalformedBody("The request body contains a lone surrogate: send valid Unicode") from error
        _log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
        raise ApplianceError(_FAILED) from error
    if response.begun:
        return
    if response.dropped:
        raise refusal
    if response.refused is not None:
        text = response.text.decode(errors="replace").strip()
        body = {"detail": text or _FAILED, "status": response.refused}
        await JSONResponse(body, response.refused)(scope, receive, send)


def _is_plain(start: Message) -> bool:
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/plain") for kind in kinds)


def _disk_use(folder: Path) -> int:
    """Remove the files of aborted uploads in ``folder``, and return the bytes of all other files."""
    taken = 0
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            try:
                facts = file.stat()
                if Path(place) == folder and time.time() - facts.st_mtime > _ABANDONED:
                    file.unlink()  # finished uploads are in subfolders
                else:
                    taken += facts.st_size
            except FileNotFoundError:  # another request removed it
                continue
    return taken
