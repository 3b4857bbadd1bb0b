"""Routes of OpenAI's images, for image models."""

from __future__ import annotations

import base64
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
from appliance.gateway.api.compat.forms import received
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.files.file_store import FileStore
from appliance.protocols.compat_types import GeneratedImage, ImageRequest, ImagesResponse
from appliance.runners import kinds_with_operation, operations

KINDS: Final = kinds_with_operation(operations.IMAGES)
#: Schemas of the fields of OpenAI's requests; other fields are inputs of the model.
_PROPERTIES, _ = requests.schema(ImageRequest)
_FORMATS: Final = {"jpeg": "jpg"}


async def generate_images(request: Request) -> Response:
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    given = await requests.body(request)
    _check_model(given)
    entry = calls.find_model(request, given["model"], caller, KINDS)
    return await _generated(request, caller, entry, given, {})


async def edit_images(request: Request) -> Response:
    """``POST /images/edits``: a form with images, and a mask that is transparent where to repaint."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    async with received(request, caller) as form:
        _check_model(form.fields)
        entry = calls.find_model(request, form.fields["model"], caller, KINDS)
        declared = entry.interface.input["properties"] | _PROPERTIES
        given = {key: _typed(key, value, declared.get(key, {})) for key, value in form.fields.items()}
        images = form.files.get("image", [])
        if not images:
            raise calls.invalid("image", "Must be a file; there is none")
        if len(images) > 1 and "image_input" not in entry.interface.input["properties"]:
            raise calls.invalid(
                "image", f"The model {entry.name} accepts one image; there are {len(images)} files"
            )
        masks = form.files.get("mask", [])
        if len(masks) > 1:
            raise calls.invalid("mask", f"Must be at most one file; there are {len(masks)}")
        base = requests.base_url(request)
        urls = [f"{base}/v1/files/{image.id}" for image in images]
        files: dict[str, Any] = {"image": urls[0]} if len(urls) == 1 else {"image_input": urls}
        if masks:
            if "mask_repaints" not in entry.interface.input["properties"]:
                raise calls.invalid("mask", f"The model {entry.name} does not support masks; omit the mask")
            files |= {"mask": f"{base}/v1/files/{masks[0].id}", "mask_repaints": "transparent"}
        return await _generated(request, caller, entry, given, files)


def _check_model(given: dict[str, Any]) -> None:
    """Check that a request has all required fields, and the name of a model."""
    calls.check_required(given, ImageRequest)
    input_schema.check({"model": given["model"]}, _PROPERTIES)


async def _generated(
    request: Request, caller: Token, entry: ServedVersion, given: dict[str, Any], files: dict[str, Any]
) -> Response:
    if entry.interface.output.get("type") != "array":
        raise BadRequest(f"The model `{given['model']}` does not generate images; use POST /v1/predictions.")
    input = inputs(given, entry) | files
    if not set(files) <= entry.interface.input["properties"].keys():
        raise BadRequest(
            f"The model `{given['model']}` cannot edit images; use POST /openai/v1/images/generations."
        )
    record = await calls.predict(request, caller, entry, input)
    if isinstance(record, Response):
        return record
    plain = given.get("response_format") != "b64_json"
    base = requests.base_url(request)
    data = [
        GeneratedImage(url=_url(file, base))
        if plain
        else GeneratedImage(b64_json=await _base64(file, services_of(request).files))
        for file in record.output
    ]
    found = ImagesResponse(created=int(record.created_at), data=data)
    return responses.json(found, 200, calls.id_headers(record))


async def _base64(file: OutputFile | str, files: FileStore) -> str:
    if isinstance(file, str):  # a `data:` URL already
        return file.partition(",")[2]
    return base64.b64encode(await files.content(files.folder / file.path)).decode()


def inputs(given: dict[str, Any], entry: ServedVersion) -> dict[str, Any]:
    """Return the input of the model for a request.

    Raises:
        InvalidInput: the model does not support a field of the request.
    """
    known = entry.interface.input["properties"]
    own = {key: value for key, value in given.items() if key in known and key not in _PROPERTIES}
    asked = requests.convert({key: value for key, value in given.items() if key not in own}, ImageRequest)
    input: dict[str, Any] = {**own, "prompt": asked.prompt}
    if asked.size is not None and asked.size != "auto":
        input["size"] = asked.size
    kind = asked.output_format or "png"
    input["output_format"] = _FORMATS.get(kind, kind)
    if asked.output_compression is not None:
        input["output_quality"] = asked.output_compression
    if asked.n is not None:
        input["num_outputs"] = asked.n
    foreign = {"size": "size", "num_outputs": "n", "output_quality": "output_compression"}
    for name, spelled in foreign.items():
        if name in input and name not in known:
            raise calls.invalid(spelled, f"The model {entry.name} has no such input; omit it")
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
