"""Forms with files, as OpenAI's clients send images and audio: each file becomes an upload."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.requests import Request

from appliance.domain.errors import FileTooLarge
from appliance.domain.file import File
from appliance.domain.token import Token
from appliance.gateway.api import requests
from appliance.gateway.api.multipart import FIELDS, FormPart, parts, too_long
from appliance.gateway.api.services import Services, services_of
from appliance.gateway.files.file_store import Incoming
from appliance.gateway.files.inputs import safe_name

_OPAQUE: Final = "application/octet-stream"


class Form(msgspec.Struct):
    """Fields and files of a form. Repeated fields, and those named ``name[]``, are lists."""

    fields: dict[str, Any] = {}
    files: dict[str, list[File]] = {}

    def put(self, name: str, value: str) -> None:
        plain = name.removesuffix("[]")
        if name != plain or plain in self.fields:
            known = self.fields.get(plain, [])
            self.fields[plain] = [*(known if isinstance(known, list) else [known]), value]
        else:
            self.fields[plain] = value


@contextlib.asynccontextmanager
async def received(request: Request, caller: Token) -> AsyncIterator[Form]:
    """Store the files of the form in ``request`` as uploads of ``caller``; delete them if the block raises.

    Raises:
        FileTooLarge: the files together exceed ``files.max_upload``.
        BodyTooLarge: ``Content-Length`` exceeds the limits of files and fields.
        MalformedBody: the request is not a form, or its fields are too long.
    """
    services = services_of(request)
    form = Form()
    limit, expected = services.files.config.max_upload, requests.content_length(request)
    size = rest = 0  # bytes of all files; bytes of all other fields
    arriving: Incoming | None = None
    try:
        part: FormPart | None = None
        text = bytearray()
        async for found in parts(request, limit):
            if isinstance(found, FormPart):
                await _finish(form, part, text, arriving, services, caller)
                part, text, arriving = found, bytearray(), None
                if found.filename is not None:
                    arriving = await services.files.incoming(expected or None)
            elif arriving is not None:
                size += len(found.data)
                if size > limit:
                    raise FileTooLarge(limit)
                await arriving.write(found.data)
            else:
                text += found.data
                rest += len(found.data)
                if rest > FIELDS:
                    raise too_long()
        await _finish(form, part, text, arriving, services, caller)
        arriving = None
        yield form
    except BaseException:
        if arriving is not None:
            arriving.discard()
        for file in (file for files in form.files.values() for file in files):
            await services.files.remove(file)
        raise


async def _finish(
    form: Form,
    part: FormPart | None,
    text: bytearray,
    arriving: Incoming | None,
    services: Services,
    caller: Token,
) -> None:
    """Put a completely received part into ``form``; store it as an upload if it is a file."""
    if part is None:
        return
    if arriving is None:
        form.put(part.name, text.decode(errors="replace"))
        return
    name = safe_name(part.filename or "")
    kind = part.content_type or mimetypes.guess_type(name)[0] or _OPAQUE
    services.erasures.refuse_new_data(caller.owner)
    file = await services.files.keep(arriving, owner=caller.owner, name=name, content_type=kind, metadata={})
    form.files.setdefault(part.name.removesuffix("[]"), []).append(file)
