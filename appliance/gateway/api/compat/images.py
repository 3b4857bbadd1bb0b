"""OpenAI's images: predictions of image models."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import BadRequest
from appliance.domain.file import OutputFile
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests, responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import checked
from appliance.gateway.api.compat.forms import received
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import Entry

KINDS: Final = ("diffusers",)
#: Fields of OpenAI's requests; other fields that are inputs of the model are passed to it unchanged.
_BODY: Final[dict[str, dict[str, Any]]] = {
    "model": {"type": "string"},
    "prompt": {"type": "string"},
    "n": {"type": "integer"},
    "size": {"type": "string", "pattern": r"^(auto|\d{1,5}x\d{1,5})$"},
    "response_format": {"type": "string", "enum": ["url", "b64_json"]},
    "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
    "output_compression": {"type": "integer"},
    "user": {"type": "string"},
    # Features of OpenAI's own models only; the values that request no such feature are accepted.
    "quality": {"type": "string", "enum": ["auto", "standard"]},
    "background": {"type": "string", "enum": ["auto", "opaque"]},
    "moderation": {"type": "string", "enum": ["auto", "low"]},
    "stream": {"type": "boolean", "enum": [False]},
}
_FORMATS: Final = {"jpeg": "jpg"}


async def generate_images(request: Request) -> Response:
    """``POST /images/generations``."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    given = await calls.body(request, "prompt")
    entry = calls.find_model(request, given["model"], caller, KINDS)
    return await _generated(request, caller, entry, given, {})


async def edit_images(request: Request) -> Response:
    """``POST /images/edits``: a form with one image."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    async with received(request, caller) as form:
        fields = {key: _typed(key, value, _BODY.get(key, {})) for key, value in form.fields.items()}
        given = checked(fields, "prompt")
        entry = calls.find_model(request, given["model"], caller, KINDS)
        declared = entry.interface.input["properties"] | _BODY
        given = {key: _typed(key, value, declared.get(key, {})) for key, value in given.items()}
        images = form.files.get("image", [])
        if len(images) != 1:
            raise calls.invalid("image", f"Must be one file; there are {len(images)}")
        if "mask" in form.files:
            raise calls.invalid(
                "mask",
                "is not supported here: use POST /v1/predictions; its mask is white where to repaint",
            )
        base = requests.origin(request)
        files = {"image": f"{base}/v1/files/{images[0].id}"}
        return await _generated(request, caller, entry, given, files)


async def _generated(
    request: Request, caller: Token, entry: Entry, given: dict[str, Any], files: dict[str, str]
) -> Response:
    if entry.interface.output.get("type") != "array":
        raise BadRequest(f"The model `{given['model']}` generates videos; use POST /v1/predictions.")
    input = inputs(given, entry) | files
    if not set(files) <= entry.interface.input["properties"].keys():
        raise BadRequest(f"The model `{given['model']}` takes no images.")
    record = await calls.predict(request, caller, entry, input)
    if isinstance(record, Response):
        return record
    plain = given.get("response_format") != "b64_json"
    base = requests.origin(request)
    data = [
        {"url": _url(file, base)}
        if plain
        else {"b64_json": await _base64(file, services_of(request).files.folder)}
        for file in record.output
    ]
    found = {"created": int(record.created_at), "data": data}
    return responses.json(found, 200, calls.id_headers(record))


async def _base64(file: OutputFile | str, folder: Path) -> str:
    """Return the file in base64."""
    if isinstance(file, str):  # a `data:` URL already
        return file.partition(",")[2]
    path = folder / file.path
    return base64.b64encode(await asyncio.to_thread(path.read_bytes)).decode()


def inputs(given: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """Return the input of the model for a request.

    Raises:
        InvalidInput: the model does not support a field of the request.
    """
    known = entry.interface.input["properties"]
    own = {key: value for key, value in given.items() if key in known and key not in _BODY}
    input_schema.check({key: value for key, value in given.items() if key not in own}, _BODY)
    input: dict[str, Any] = {**own, "prompt": given["prompt"]}
    size = given.get("size") or "auto"
    if size != "auto":
        input["size"] = size
    kind = given.get("output_format") or "png"
    input["output_format"] = _FORMATS.get(kind, kind)
    if given.get("output_compression") is not None:
        input["output_quality"] = given["output_compression"]
    if given.get("n") is not None:
        input["num_outputs"] = given["n"]
    foreign = {"size": "size", "num_outputs": "n", "output_quality": "output_compression"}
    for name, spelled in foreign.items():
        if name in input and name not in known:
            raise calls.invalid(spelled, f"the model {entry.name} has no such input; omit it")
    return input


def _url(file: OutputFile | str, base: str) -> str:
    return file if isinstance(file, str) else base + file.url_path


def _typed(name: str, text: Any, declared: dict[str, Any]) -> Any:
    """Convert a field of a form, which is text, to its declared type.

    Raises:
        InvalidInput: the text is not a value of that type.
    """
    kind = declared.get("type")
    if kind not in {"integer", "number", "boolean"} or not isinstance(text, str):
        return text
    try:
        written = text.lower() if kind == "boolean" else text  # Python clients send False
        return msgspec.json.decode(written, type={"integer": int, "number": float, "boolean": bool}[kind])
    except msgspec.DecodeError as error:
        raise calls.invalid(name, f"Invalid type. Expected: {kind}, given: {text[:100]}") from error


ROUTES: Final = (
    Route(f"{OPENAI}/v1/images/generations", generate_images, methods=["POST"]),
    Route(f"{OPENAI}/v1/images/edits", edit_images, methods=["POST"]),
)
