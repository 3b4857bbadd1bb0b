"""What browsers send: files that are picked, and the data of events, with the limits that the API has.

Gradio takes bodies of any size from whoever is signed in, keeps fields of forms in memory, and leaves the
files of uploads that break off.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.config import Config
from appliance.errors import (
    ApplianceError,
    BodyTooLarge,
    MalformedBody,
    NoRoom,
    NotFound,
    PermissionDenied,
)
from appliance.ui.session import Session

#: Methods of requests that change nothing, and whose body nobody reads.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FRAME: Final = 256 * 1024  # bytes of a form around its files
_ABANDONED: Final = 3600.0  # seconds after which a file that no upload has finished is removed
_FORM: Final = "multipart/form-data"
_BOUNDARY: Final = re.compile(r";\s*boundary=(\"[^\"]{1,200}\"|[^\s\";]{1,200})", re.IGNORECASE)


class Bodies:
    """Passes requests with a body on to a page, as far as they may have it."""

    def __init__(self, folder: Path, config: Config) -> None:
        """``folder`` is where Gradio puts files that are picked."""
        self._folder = folder
        self._files = config.files
        self._body = config.limits.body
        self._arriving = 0  # bytes that uploads under way may still become

    async def pass_on(self, app: ASGIApp, request: Request, known: Session, scope: Scope, send: Send) -> None:
        """Have ``app`` answer; ``scope`` is what it is called with.

        Raises:
            ApplianceError: the body is too large, or of a kind that this person may not send.
        """
        if request.method in SAFE:
            await app(scope, request.receive, send)
            return
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            refusal: ApplianceError = BodyTooLarge(
                f"The request body is over the limit of {self._body:,} bytes (limits.body in models.yaml)"
            )
            await _limited(app, scope, request.receive, send, self._body, refusal)
            return
        most = self._files.max_upload + _FRAME
        expected = self._admitted(request, known, most)
        taken = await asyncio.to_thread(_taken, self._folder) + self._arriving
        if taken + expected > self._files.quota:
            raise NoRoom(
                f"Files that were picked in the pages take {taken:,} of {self._files.quota:,} bytes "
                "(files.quota in models.yaml): try again later"
            )
        self._arriving += expected
        try:
            await _limited(app, scope, request.receive, send, expected, self._too_large())
        finally:
            self._arriving -= expected

    def _admitted(self, request: Request, known: Session, most: int) -> int:
        """How many bytes a form with files may have."""
        if not request.url.path.endswith("/upload"):
            raise NotFound("Forms with files are not taken here.")
        if not known.may_run:
            raise PermissionDenied(f'This token has the scope "{known.scope}"; this needs "run".')
        if not _BOUNDARY.search(request.headers["content-type"]):
            raise MalformedBody("The request body must be multipart/form-data with a boundary")
        length = request.headers.get("content-length", "")
        expected = int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else most
        if expected > most:
            raise self._too_large()
        return expected

    def _too_large(self) -> ApplianceError:
        return BodyTooLarge(
            f"Files that are picked at once must be less than {self._files.max_upload:,} bytes together "
            "(files.max_upload in models.yaml)"
        )


async def _limited(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, most: int, refusal: ApplianceError
) -> None:
    """Have ``app`` answer a request of at most ``most`` bytes; else raise ``refusal``."""
    received, begun = 0, False

    async def counted() -> Message:
        nonlocal received
        if received > most:
            return {"type": "http.disconnect"}
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > most else message

    async def answer(message: Message) -> None:
        nonlocal begun
        if received <= most:
            begun = True
            await send(message)

    try:
        await app(scope, counted, answer)
    except Exception:
        if received <= most:
            raise
    if received > most and not begun:
        raise refusal


def _taken(folder: Path) -> int:
    """Bytes of all files below ``folder``; what uploads that broke off have left is removed."""
    taken = 0
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            try:
                facts = file.stat()
                if Path(place) == folder and time.time() - facts.st_mtime > _ABANDONED:
                    file.unlink()  # what is finished lies in a folder of its own
                else:
                    taken += facts.st_size
            except FileNotFoundError:  # another request was faster
                continue
    return taken
