"""Files: upload, list, get, delete, download; and the files that predictions made."""

from __future__ import annotations

import contextlib
import mimetypes
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import FieldProblem, FileTooLarge, InvalidInput, NotFound
from appliance.domain.file import File
from appliance.domain.token import Scope
from appliance.gateway.api import paging, requests, responses
from appliance.gateway.api.multipart import FIELDS, Piece, parts, too_long
from appliance.gateway.api.services import Services
from appliance.gateway.files.file_store import Incoming
from appliance.gateway.files.inputs import safe_name
from appliance.protocols import serializers
from appliance.store import Cursor

PAGE: Final = 100
_LONGEST_NAME: Final = 255
_OPAQUE: Final = "application/octet-stream"
_BRACKETS: Final = re.compile(r"\[([^\[\]]*)\]")
_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(\s*;\s*[\w.+-]+=(\"[^\"\r\n]*\"|[\w.+-]+))*")
#: What a file says is for whoever opens it, not for this origin: nothing in it may run here.
_INERT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; media-src 'self'",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class _Form:
    """An upload's form as far as it has arrived."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, bytearray]] = []
        self.file: Incoming | None = None
        self.filename: str | None = None
        self.content_type: str | None = None

    def text(self, name: str) -> str | None:
        return next((value.decode(errors="replace") for key, value in self.fields if key == name), None)


class Files:
    """The routes about files."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._files = services.files

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/v1/files", self.create, methods=["POST"]),
            Route("/v1/files", self.list, methods=["GET"]),
            Route("/v1/files/{id}", self.get, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/download", self.download, methods=["GET"]),
            Route("/outputs/{id}/{name}", self.output, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /files``: a form with the file in ``content``."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        expected = requests.content_length(request)
        limit = self._files.config.max_upload
        if expected > limit + FIELDS:
            raise FileTooLarge(limit)
        form = _Form()
        try:
            await self._receive(request, form, expected)
            if form.file is None:
                raise InvalidInput([FieldProblem("required", "", "content is required")])
            metadata = _metadata(form)
            name, content_type = _name(form), _content_type(form)
            file = await self._files.keep(
                form.file, owner=caller.owner, name=name, content_type=content_type, metadata=metadata
            )
        except BaseException:  # also when the client goes away
            if form.file is not None:
                form.file.discard()
            raise
        return responses.json(serializers.file(file, self._base(request)), 201)

    async def list(self, request: Request) -> Response:
        """``GET /files``: uploads, newest first, a hundred at a time."""
        caller = await requests.caller(request, self._services, Scope.READ)
        base = self._base(request)
        given = request.query_params.get("cursor")
        cursor = paging.decode(given) if given else None
        found = await self._files.table.uploads(caller.owner, cursor=cursor, limit=PAGE + 1)
        shown = found[:PAGE]
        following = None
        if len(found) > PAGE:
            following = paging.address(request, base, Cursor(shown[-1].created_at, shown[-1].id))
        return responses.json(
            serializers.page([serializers.file(file, base) for file in shown], next=following)
        )

    async def get(self, request: Request) -> Response:
        """``GET /files/{id}``: what is known of it; the bytes are at other addresses."""
        return responses.json(serializers.file(await self._file(request, Scope.READ), self._base(request)))

    async def delete(self, request: Request) -> Response:
        """``DELETE /files/{id}``."""
        await self._files.remove(await self._file(request, Scope.RUN))
        return Response(status_code=204, media_type="text/plain")

    async def download(self, request: Request) -> Response:
        """``GET /files/{id}/download?owner&expiry&signature``: the bytes; the signature is the permission."""
        asked = request.query_params
        id, owner = request.path_params["id"], asked.get("owner", "")
        file = await self._files.upload(id, owner)
        valid = self._files.signed(id, owner, asked.get("expiry", ""), asked.get("signature", ""))
        if file is None or not valid:
            raise NotFound("File not found")
        return self._bytes(file, "attachment")

    async def output(self, request: Request) -> Response:
        """``GET /outputs/{id}/{name}``: the bytes; the id cannot be guessed, and clients send no token."""
        file = await self._files.output(request.path_params["id"])
        if file is None:
            raise NotFound("File not found")
        return self._bytes(file, "inline")

    def _bytes(self, file: File, disposition: str) -> Response:
        path = self._files.path(file)
        if not path.exists():
            raise NotFound("File not found")
        return FileResponse(
            path,
            headers=_INERT,
            media_type=file.content_type,
            filename=file.name,
            content_disposition_type=disposition,
        )

    async def _file(self, request: Request, scope: Scope) -> File:
        caller = await requests.caller(request, self._services, scope)
        file = await self._files.upload(request.path_params["id"], caller.owner)
        if file is None:
            raise NotFound("File not found")
        return file

    async def _receive(self, request: Request, form: _Form, expected: int) -> None:
        """Read the form; the file goes to the disk as it comes.

        Raises:
            FileTooLarge: the file is over the limit.
            MalformedBody: something else is too much, or no form.
        """
        limit = self._files.config.max_upload
        field: bytearray | None = None
        size = rest = 0  # of the file, and of everything else
        async for found in parts(request, limit):
            if not isinstance(found, Piece):
                rest += len(found.name)
                field = bytearray()
                if found.name == "content" and form.file is None:
                    field = None
                    form.file = await self._files.incoming(expected or None)
                    form.filename, form.content_type = found.filename, found.content_type
                else:
                    form.fields.append((found.name, field))
            elif field is not None:
                field += found.data
                rest += len(found.data)
            elif form.file is not None:
                size += len(found.data)
                if size > limit:
                    raise FileTooLarge(limit)
                await form.file.write(found.data)
            if rest > FIELDS:
                raise too_long()

    def _base(self, request: Request) -> str:
        return requests.origin(request, self._services)


def _name(form: _Form) -> str:
    """The name that the caller gave, without any folder that is in it.

    Raises:
        InvalidInput: it is too long.
    """
    name = re.split(r"[/\\]", form.text("filename") or form.filename or "")[-1].replace("\0", "").strip()
    if len(name) > _LONGEST_NAME:
        description = f"String length must be less than or equal to {_LONGEST_NAME}"
        raise InvalidInput([FieldProblem("string_lte", "filename", description)])
    return name or safe_name(form.filename or "upload")


def _content_type(form: _Form) -> str:
    """Return the content type that the caller gave, else the one that follows from the file's name.

    Raises:
        InvalidInput: it is no media type.
    """
    given = (
        form.text("type") or form.content_type or mimetypes.guess_type(_name(form))[0] or _OPAQUE
    ).strip()
    if len(given) > _LONGEST_NAME or not _TYPE.fullmatch(given):
        raise InvalidInput([FieldProblem("format", "type", "Does not match format 'media type'")])
    return given


def _metadata(form: _Form) -> dict[str, Any]:
    """The ``metadata`` field, which is JSON, or many fields called ``metadata[a][b]``.

    Raises:
        InvalidInput: it is neither.
    """
    text = form.text("metadata")
    found: dict[str, Any] = {}
    if text:
        try:
            decoded = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidInput(
                [FieldProblem("format", "metadata", "Does not match format 'json'")]
            ) from error
        if not isinstance(decoded, dict):
            described = f"Invalid type. Expected: object, given: {input_schema.type_name(decoded)}"
            raise InvalidInput([FieldProblem("invalid_type", "metadata", described)])
        found = decoded
    for name, value in form.fields:
        if name.startswith("metadata["):
            _put(found, list(_keys(name)), value.decode(errors="replace"))
    return found


def _keys(name: str) -> Iterator[str]:
    yield from _BRACKETS.findall(name)


def _put(place: dict[str, Any], keys: list[str], value: str) -> None:
    """Store ``value`` at ``place[a][b]``; an empty key at the end makes a list."""
    for at, key in enumerate(keys):
        if at == len(keys) - 1:
            place[key] = value
        elif keys[at + 1 :] == [""]:
            with contextlib.suppress(AttributeError):  # the same key was given as text too
                place.setdefault(key, []).append(value)
            return
        else:
            deeper = place.setdefault(key, {})
            if not isinstance(deeper, dict):
                return
            place = deeper
