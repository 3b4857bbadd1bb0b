"""OpenAI's embeddings: predictions of embedding models."""

from __future__ import annotations

import base64
import struct
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import FieldProblem, InvalidInput
from appliance.domain.token import Scope
from appliance.gateway.api import responses
from appliance.gateway.api.compat.calls import Calls
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import Services

KINDS: Final = ("embeddings",)
_BODY: Final[dict[str, dict[str, Any]]] = {
    "model": {"type": "string"},
    "input": {},
    "encoding_format": {"type": "string", "enum": ["float", "base64"]},
    "dimensions": {},
    "user": {"type": "string"},
}


class Embeddings:
    """The embeddings route of OpenAI's API."""

    def __init__(self, services: Services) -> None:
        self._calls = Calls(services)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(f"{OPENAI}/v1/embeddings", self.create, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        """``POST /embeddings``: vectors of length 1, in the order of the texts."""
        caller = await self._calls.caller(request, Scope.RUN, creates=True)
        given = await self._calls.body(request, "input")
        input_schema.check(given, _BODY)
        if given.get("dimensions") is not None:
            raise _wrong(
                "dimensions", "embedding models of this appliance have one vector length; omit dimensions"
            )
        entry = self._calls.entry(given["model"], caller, KINDS)
        record = await self._calls.predicted(request, caller, entry, {"texts": texts(given["input"])})
        if isinstance(record, Response):
            return record
        tokens = record.metrics.get("input_token_count", 0)
        plain = given.get("encoding_format") != "base64"
        found = {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": vector if plain else base64_floats(vector),
                }
                for index, vector in enumerate(record.output)
            ],
            "model": given["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return responses.json(found, 200, self._calls.id_headers(record))


def texts(given: Any) -> list[str]:
    """Return the texts in an ``input``.

    Raises:
        InvalidInput: it is empty, or contains something else, such as tokens.
    """
    found = given if isinstance(given, list) else [given]
    if not found or not all(isinstance(text, str) for text in found):
        raise _wrong("input", "Must be a text or a list of texts; tokens are not supported")
    return found


def base64_floats(vector: list[float]) -> str:
    """Encode ``vector`` as base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _wrong(field: str, why: str) -> InvalidInput:
    return InvalidInput([FieldProblem("invalid", field, why)])
