"""The rerank routes of Jina's and Cohere's APIs, beside OpenAI's routes, for models that score documents.

``/v1/rerank`` answers Jina's clients and those of Cohere's first API, ``/v2/rerank`` those of Cohere's
second: https://jina.ai/reranker and https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.errors import OPENAI
from appliance.protocols.compat_types import (
    RerankApiVersion,
    RerankBilledUnits,
    RerankMeta,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankTokens,
    RerankUsage,
)
from appliance.runners import kinds_with_operation, operations

KINDS: Final = kinds_with_operation(operations.RERANK)
_DOCUMENTS_OF_A_UNIT: Final = 100  # a search unit of Cohere is a query with at most this many documents


async def rerank(request: Request) -> Response:
    """``POST /v1/rerank``: as in Jina's API, the results have their documents by default."""
    return await _rerank(request, "1", return_documents=True)


async def rerank_as_cohere(request: Request) -> Response:
    """``POST /v2/rerank``: as in Cohere's API, the results have no documents by default."""
    return await _rerank(request, "2", return_documents=False)


async def _rerank(request: Request, version: str, *, return_documents: bool) -> Response:
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    asked = await calls.parse(request, RerankRequest)
    if asked.max_chunks_per_doc is not None:
        raise calls.invalid(
            "max_chunks_per_doc",
            "documents are truncated instead of cut into chunks; omit max_chunks_per_doc",
        )
    if asked.top_n is not None and asked.top_n < 1:
        raise calls.invalid("top_n", "Must be greater than or equal to 1")
    entry = calls.find_model(request, asked.model, caller, KINDS, operations.RERANK)
    given = {
        "query": asked.query,
        "documents": texts(asked.documents, asked.rank_fields),
        "top_k": asked.top_n,
        "max_tokens": asked.max_tokens_per_doc,
    }
    record = await calls.predict(
        request, caller, entry, {key: value for key, value in given.items() if value is not None}
    )
    if isinstance(record, Response):
        return record
    if asked.return_documents is not None:
        return_documents = asked.return_documents
    tokens = record.metrics.get("input_token_count", 0)
    found = RerankResponse(
        id=record.id,
        model=asked.model,
        results=[
            RerankResult(index=each["index"], relevance_score=each["score"])
            if not return_documents
            else RerankResult(
                index=each["index"],
                relevance_score=each["score"],
                document=_as_object(asked.documents[each["index"]]),
            )
            for each in record.output
        ],
        usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
        meta=RerankMeta(
            api_version=RerankApiVersion(version=version),
            billed_units=RerankBilledUnits(search_units=-(-len(asked.documents) // _DOCUMENTS_OF_A_UNIT)),
            tokens=RerankTokens(input_tokens=tokens, output_tokens=0),
        ),
    )
    return responses.json(found, 200, calls.id_headers(record))


def texts(documents: list[Any], fields: list[str] | None) -> list[str]:
    """Return the text of each document of a request.

    Args:
        documents: texts, or objects with the key ``text``.
        fields: keys of objects whose values are the text, one on each line, instead of ``text``.

    Raises:
        InvalidInput: there is no document, or a document has no text.
    """
    if not documents:
        raise calls.invalid("documents", "Must have at least one document")
    found: list[str] = []
    for number, document in enumerate(documents):
        given = {"text": document} if isinstance(document, str) else document
        if not isinstance(given, dict):
            raise calls.invalid(f"documents.{number}", "Must be a text, or an object with the key text")
        keys = fields if fields and not isinstance(document, str) else ["text"]
        values = [given.get(key) for key in keys]
        if not all(isinstance(value, str) for value in values):
            wanted = ", ".join(
                key for key, value in zip(keys, values, strict=True) if not isinstance(value, str)
            )
            raise calls.invalid(f"documents.{number}", f"Must have a text under {wanted}")
        found.append("\n".join(value for value in values if isinstance(value, str)))
    return found


def _as_object(document: Any) -> dict[str, Any]:
    """Return a document of a request as results show it."""
    return {"text": document} if isinstance(document, str) else dict(document)


ROUTES: Final = (
    Route(f"{OPENAI}/v1/rerank", rerank, methods=["POST"]),
    Route(f"{OPENAI}/v2/rerank", rerank_as_cohere, methods=["POST"]),
)
