"""The route of OpenAI's embeddings, for embedding models."""

from __future__ import annotations

import base64
import struct
from typing import Any, Final

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
    if asked.dimensions is not None:
        raise calls.invalid(
            "dimensions", "embedding models of this appliance have one vector length; omit dimensions"
        )
    entry = calls.find_model(request, asked.model, caller, KINDS)
    record = await calls.predict(request, caller, entry, {"texts": texts(asked.input)})
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


def texts(given: Any) -> list[str]:
    """Return ``given``, the field ``input`` of a request, as a list of texts.

    Raises:
        InvalidInput: ``given`` is an empty list, or contains something else than texts, such as tokens.
    """
    found = given if isinstance(given, list) else [given]
    if not found or not all(isinstance(text, str) for text in found):
        raise calls.invalid("input", "Must be a text or a list of texts; tokens are not supported")
    return found


def base64_floats(vector: list[float]) -> str:
    """Encode ``vector`` as base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ROUTES: Final = (Route(f"{OPENAI}/v1/embeddings", create_embeddings, methods=["POST"]),)
