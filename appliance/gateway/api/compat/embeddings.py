"""The route of OpenAI's embeddings, for embedding models."""

from __future__ import annotations

import base64
import struct
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.errors import OPENAI
from appliance.protocols.compat_types import (
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    EmbeddingsUsage,
)
from appliance.runners import kinds_with_operation, operations

KINDS: Final = kinds_with_operation(operations.EMBEDDINGS)


async def create_embeddings(request: Request) -> Response:
    """``POST /embeddings``: the vectors have length 1 and the order of the texts."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    asked = await calls.parse(request, EmbeddingsRequest)
    entry = calls.find_model(request, asked.model, caller, KINDS)
    input: dict[str, Any] = {"texts": texts(asked.input)}
    if asked.dimensions is not None:
        lengths = entry.interface.components.get("dimensions", {}).get("enum", [])
        if asked.dimensions not in lengths:
            can = f"{', '.join(map(str, lengths))} or without dimensions" if lengths else "without dimensions"
            raise calls.invalid("dimensions", f"vectors of {asked.model} are available only {can}")
        input["dimensions"] = asked.dimensions
    record = await calls.predict(request, caller, entry, input)
    if isinstance(record, Response):
        return record
    tokens = record.metrics.get("input_token_count", 0)
    plain = asked.encoding_format != "base64"
    found = EmbeddingsResponse(
        object="list",
        data=[
            Embedding(object="embedding", index=index, embedding=vector if plain else base64_floats(vector))
            for index, vector in enumerate(record.output)
        ],
        model=asked.model,
        usage=EmbeddingsUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return responses.json(found, 200, calls.id_headers(record))


def texts(given: Any) -> list[str] | str:
    """Return ``given``, the field ``input`` of a request, as the model's input ``texts``.

    Lists of token ids are returned as JSON.

    Raises:
        InvalidInput: ``given`` is nothing that can be embedded.
    """
    found = given if isinstance(given, list) else [given]
    if found and all(isinstance(text, str) for text in found):
        return found
    lists = [given] if isinstance(given, list) and _are_ids(given) else found
    if not lists or not all(isinstance(ids, list) and _are_ids(ids) for ids in lists):
        raise calls.invalid("input", "Must be a text, token ids, or a list of texts or of lists of token ids")
    return msgspec.json.encode(lists).decode()


def _are_ids(found: list[Any]) -> bool:
    return bool(found) and all(isinstance(id, int) and not isinstance(id, bool) for id in found)


def base64_floats(vector: list[float]) -> str:
    """Encode ``vector`` as base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ROUTES: Final = (Route(f"{OPENAI}/v1/embeddings", create_embeddings, methods=["POST"]),)
