"""Routes for uploaded files and for output files of predictions."""

from __future__ import annotations

import contextlib
import mimetypes
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import (
    FieldProblem,
    FileTooLarge,
    InvalidInput,
    NotFound,
    OutputRemoved,
    PermissionDenied,
)
from appliance.domain.file import File
from appliance.domain.token import Scope
from appliance.gateway.api import paging, requests, responses, stored_file
from appliance.gateway.api.multipart import FIELDS, Piece, parts, too_long
from appliance.gateway.api.services import services_of
from appliance.gateway.files.file_store import FileStore, Incoming
from appliance.gateway.files.inputs import safe_name
from appliance.protocols import serializers
from appliance.store import Cursor

PAGE: Final = 100
_LONGEST_NAME: Final = 255
_OPAQUE: Final = "application/octet-stream"
_BRACKETS: Final = re.compile(r"\[([^\[\]]*)\]")
_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(\s*;\s*[\w.+-]+=(\"[^\"\r\n]*\"|[\w.+-]+))*")
#: Files are not trusted: scripts in them must not run in the origin of this server.
_INERT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; media-src 'self'",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class _Form:
    """The part of an upload's form that has arrived."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, bytearray]] = []
        self.file: Incoming | None = None
        self.filename: str | None = None
        self.content_type: str | None = None

    def text(self, name: str) -> str | None:
        return next((value.decode(errors="replace") for key, value in self.fields if key == name), None)


async def create_file(request: Request) -> Response:
    files = services_of(request).files
    caller = await requests.caller(request, Scope.RUN)
    expected = requests.content_length(request)
    limit = files.config.max_upload
    if expected > limit + FIELDS:
        raise FileTooLarge(limit)
    form = _Form()
    try:
        await _receive(request, form, expected, files)
        if form.file is None:
            raise InvalidInput([FieldProblem("required", "", "content is required")])
        metadata = _metadata(form)
        name, content_type = _name(form), _content_type(form)
        services_of(request).erasures.refuse_new_data(caller.owner)
        file = await files.keep(
            form.file, owner=caller.owner, name=name, content_type=content_type, metadata=metadata
        )
    except BaseException:  # also when the client disconnects
        if form.file is not None:
            form.file.discard()
        raise
    return responses.json(serializers.file(file, requests.base_url(request)), 201)


async def list_files(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    base = requests.base_url(request)
    given = request.query_params.get("cursor")
    cursor = paging.decode(given) if given else None
    found = await services_of(request).files.table.uploads(caller.owner, cursor=cursor, limit=PAGE + 1)
    shown = found[:PAGE]
    following = None
    if len(found) > PAGE:
        following = paging.page_url(request, base, Cursor(shown[-1].created_at, shown[-1].id))
    return responses.json(serializers.page([serializers.file(file, base) for file in shown], next=following))


async def get_file(request: Request) -> Response:
    """``GET /files/{id}``: metadata of an upload; its content is at ``/files/{id}/download``."""
    return responses.json(serializers.file(await _file(request, Scope.READ), requests.base_url(request)))


async def delete_file(request: Request) -> Response:
    await services_of(request).files.remove(await _file(request, Scope.RUN))
    return Response(status_code=204, media_type="text/plain")


async def download_file(request: Request) -> Response:
    """``GET /files/{id}/download?owner&expiry&signature``: the signature replaces a token.

    Without a signature, a token of the file's owner is needed, which Replicate does not offer.
    """
    files = services_of(request).files
    asked = request.query_params
    if "signature" not in asked and "authorization" in request.headers:
        if (await requests.caller(request, Scope.READ)).prediction is not None:
            raise PermissionDenied("The token of a running prediction cannot download uploads.")
        return await _bytes(request, await _file(request, Scope.READ), "attachment")
    id, owner = request.path_params["id"], asked.get("owner", "")
    file = await files.upload(id, owner)
    valid = files.signed(id, owner, asked.get("expiry", ""), asked.get("signature", ""))
    if file is None or not valid:
        raise NotFound("File not found")
    return await _bytes(request, file, "attachment")


async def get_output_file(request: Request) -> Response:
    """``GET /outputs/{id}/{name}``: needs no token, because the id cannot be guessed."""
    file = await services_of(request).files.output(request.path_params["id"])
    if file is None:
        raise NotFound("File not found")
    return await _bytes(request, file, "inline")


async def _bytes(request: Request, file: File, disposition: str) -> Response:
    files = services_of(request).files
    try:
        return await stored_file.respond(
            request,
            files,
            files.path(file),
            media_type=file.content_type,
            headers=_INERT,
            filename=file.name,
            disposition=disposition,
        )
    except OutputRemoved as error:
        raise NotFound("File not found") from error


async def _file(request: Request, scope: Scope) -> File:
    caller = await requests.caller(request, scope)
    file = await services_of(request).files.upload(request.path_params["id"], caller.owner)
    if file is None:
        raise NotFound("File not found")
    return file


async def _receive(request: Request, form: _Form, expected: int, files: FileStore) -> None:
    """Read the form into ``form``; the file is written to the disk as it arrives.

    Raises:
        FileTooLarge: the file is over ``files.max_upload``.
        MalformedBody: the other fields are too long, or the body is not a form.
    """
    limit = files.config.max_upload
    field: bytearray | None = None
    size = rest = 0  # bytes of the file; bytes of all other fields
    async for found in parts(request, limit):
        if not isinstance(found, Piece):
            rest += len(found.name)
            field = bytearray()
            if found.name == "content" and form.file is None:
                field = None
                form.file = await files.incoming(expected or None)
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


def _name(form: _Form) -> str:
    """Return the file name that the caller gave, without its folders.

    Raises:
        InvalidInput: the name is too long.
    """
    name = re.split(r"[/\\]", form.text("filename") or form.filename or "")[-1].replace("\0", "").strip()
    if len(name) > _LONGEST_NAME:
        description = f"String length must be less than or equal to {_LONGEST_NAME}"
        raise InvalidInput([FieldProblem("string_lte", "filename", description)])
    return name or safe_name(form.filename or "upload")


def _content_type(form: _Form) -> str:
    """Return the content type that the caller gave, else the one that follows from the file's name.

    Raises:
        InvalidInput: the field ``type`` is not a media type.
    """
    given = (
        form.text("type") or form.content_type or mimetypes.guess_type(_name(form))[0] or _OPAQUE
    ).strip()
    if len(given) > _LONGEST_NAME or not _TYPE.fullmatch(given):
        raise InvalidInput([FieldProblem("format", "type", "Does not match format 'media type'")])
    return given


def _metadata(form: _Form) -> dict[str, Any]:
    """Return the metadata: the JSON in ``metadata``, or the fields called ``metadata[a][b]``.

    Raises:
        InvalidInput: the field ``metadata`` is no JSON object.
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
    """Store ``value`` at ``place[a][b]``; if the last key is empty, append it to a list."""
    for at, key in enumerate(keys):
        if at == len(keys) - 1:
            place[key] = value
        elif keys[at + 1 :] == [""]:
            with contextlib.suppress(AttributeError):  # the form also has this key as text
                place.setdefault(key, []).append(value)
            return
        else:
            deeper = place.setdefault(key, {})
            if not isinstance(deeper, dict):
                return
            place = deeper


ROUTES: Final = (
    Route("/v1/files", create_file, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{id}", get_file, methods=["GET"]),
    Route("/v1/files/{id}", delete_file, methods=["DELETE"]),
    Route("/v1/files/{id}/download", download_file, methods=["GET"]),
    Route("/outputs/{id}/{name}", get_output_file, methods=["GET"]),
)
