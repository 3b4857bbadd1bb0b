"""OpenAI's images: predictions of image models, in other words."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import BadRequest, FieldProblem, InvalidInput
from appliance.domain.file import OutputFile
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests, responses
from appliance.gateway.api.compat.calls import Calls, checked
from appliance.gateway.api.compat.forms import received
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Entry

KINDS: Final = ("diffusers",)
#: What OpenAI's requests have; whatever else is an input of the model goes to it as it is.
_BODY: Final[dict[str, dict[str, Any]]] = {
    "model": {"type": "string"},
    "prompt": {"type": "string"},
    "n": {"type": "integer"},
    "size": {"type": "string", "pattern": r"^(auto|\d{1,5}x\d{1,5})$"},
    "response_format": {"type": "string", "enum": ["url", "b64_json"]},
    "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
    "output_compression": {"type": "integer"},
    "user": {"type": "string"},
    # What only OpenAI's own models have; the word for none of it is taken.
    "quality": {"type": "string", "enum": ["auto", "standard"]},
    "background": {"type": "string", "enum": ["auto", "opaque"]},
    "moderation": {"type": "string", "enum": ["auto", "low"]},
    "stream": {"type": "boolean", "enum": [False]},
}
_FORMATS: Final = {"jpeg": "jpg"}


class Images:
    """The routes about images."""

    def __init__(self, services: Services) -> None:
        """``services`` is what they work with."""
        self._services = services
        self._calls = Calls(services)

    def routes(self) -> list[Route]:
        """What this resource answers."""
        return [
            Route(f"{OPENAI}/v1/images/generations", self.generate, methods=["POST"]),
            Route(f"{OPENAI}/v1/images/edits", self.edit, methods=["POST"]),
        ]

    async def generate(self, request: Request) -> Response:
        """``POST /images/generations``."""
        caller = await self._calls.caller(request, Scope.RUN, creates=True)
        given = await self._calls.body(request, "prompt")
        entry = self._calls.entry(given["model"], caller, KINDS)
        return await self._drawn(request, caller, entry, given, {})

    async def edit(self, request: Request) -> Response:
        """``POST /images/edits``: a form with one image."""
        caller = await self._calls.caller(request, Scope.RUN, creates=True)
        async with received(request, self._services, caller) as form:
            fields = {key: _typed(key, value, _BODY.get(key, {})) for key, value in form.fields.items()}
            given = checked(fields, "prompt")
            entry = self._calls.entry(given["model"], caller, KINDS)
            declared = entry.interface.input["properties"] | _BODY
            given = {key: _typed(key, value, declared.get(key, {})) for key, value in given.items()}
            images = form.files.get("image", [])
            if len(images) != 1:
                raise _wrong("image", f"Must be one file; there are {len(images)}")
            if "mask" in form.files:
                raise _wrong(
                    "mask", "is not taken here: POST /v1/predictions takes one, white where to repaint"
                )
            base = requests.origin(request, self._services)
            files = {"image": f"{base}/v1/files/{images[0].id}"}
            return await self._drawn(request, caller, entry, given, files)

    async def _drawn(
        self, request: Request, caller: Token, entry: Entry, given: dict[str, Any], files: dict[str, str]
    ) -> Response:
        if entry.interface.output.get("type") != "array":
            raise BadRequest(f"The model `{given['model']}` makes videos; POST /v1/predictions runs it.")
        input = inputs(given, entry) | files
        if not set(files) <= entry.interface.input["properties"].keys():
            raise BadRequest(f"The model `{given['model']}` takes no images.")
        record = await self._calls.predicted(request, caller, entry, input)
        if isinstance(record, Response):
            return record
        plain = given.get("response_format") != "b64_json"
        base = requests.origin(request, self._services)
        data = [
            {"url": _address(file, base)} if plain else {"b64_json": await self._packed(file)}
            for file in record.output
        ]
        found = {"created": int(record.created_at), "data": data}
        return responses.json(found, 200, self._calls.told(record))

    async def _packed(self, file: OutputFile | str) -> str:
        """The file in base64."""
        if isinstance(file, str):  # a `data:` URL already
            return file.partition(",")[2]
        path = self._services.files.folder / file.path
        return base64.b64encode(await asyncio.to_thread(path.read_bytes)).decode()


def inputs(given: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """What the model is asked for a request.

    Raises:
        InvalidInput: the request has what the model does not take.
    """
    known = entry.interface.input["properties"]
    own = {key: value for key, value in given.items() if key in known and key not in _BODY}
    input_schema.check({key: value for key, value in given.items() if key not in own}, _BODY)
    asked: dict[str, Any] = {**own, "prompt": given["prompt"]}
    size = given.get("size") or "auto"
    if size != "auto":
        asked["size"] = size
    kind = given.get("output_format") or "png"
    asked["output_format"] = _FORMATS.get(kind, kind)
    if given.get("output_compression") is not None:
        asked["output_quality"] = given["output_compression"]
    if given.get("n") is not None:
        asked["num_outputs"] = given["n"]
    foreign = {"size": "size", "num_outputs": "n", "output_quality": "output_compression"}
    for name, spelled in foreign.items():
        if name in asked and name not in known:
            raise _wrong(spelled, f"the model {entry.name} has no such input; leave it out")
    return asked


def _address(file: OutputFile | str, base: str) -> str:
    return file if isinstance(file, str) else base + file.address


def _typed(name: str, text: Any, declared: dict[str, Any]) -> Any:
    """A field of a form, which is a text, as what it is declared to be.

    Raises:
        InvalidInput: it is no number, nor true or false.
    """
    kind = declared.get("type")
    if kind not in {"integer", "number", "boolean"} or not isinstance(text, str):
        return text
    try:
        written = text.lower() if kind == "boolean" else text  # Python clients send False
        return msgspec.json.decode(written, type={"integer": int, "number": float, "boolean": bool}[kind])
    except msgspec.DecodeError as error:
        raise _wrong(name, f"Invalid type. Expected: {kind}, given: {text[:100]}") from error


def _wrong(field: str, why: str) -> InvalidInput:
    return InvalidInput([FieldProblem("invalid", field, why)])
