"""Routes of Anthropic's API for language models: messages and models."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import MESSAGES
from appliance.gateway.api.errors import ANTHROPIC
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.protocols import serializers
from appliance.protocols.compat_types import (
    AnthropicModelResponse,
    AnthropicModelsResponse,
    CountTokensRequest,
    MessageRequest,
)
from appliance.runners import kinds_with_operation, operations

#: The kinds of models that this API can call.
KINDS: Final = kinds_with_operation(operations.MESSAGES)

_MODELS: Final = 20  # in one page, unless the request has `limit`
_MAX_MODELS: Final = 1000


async def create_message(request: Request) -> Response:
    return await calls.run_operation(request, operations.MESSAGES, MESSAGES, MessageRequest)


async def count_tokens(request: Request) -> Response:
    """``POST /messages/count_tokens``: loads the model, whose tokenizer counts."""
    return await calls.run_operation(
        request, operations.COUNT_TOKENS, MESSAGES, CountTokensRequest, streams=False
    )


async def list_models(request: Request) -> Response:
    """``GET /models``: one page of models, by name and by each alias without a slash."""
    caller = await calls.find_caller(request, Scope.READ)
    limit = requests.limit(request, _MODELS, _MAX_MODELS)
    found = calls.list_models(request, caller, KINDS)
    names = [name for name, _ in found]
    after, before = (_position(request, key, names) for key in ("after_id", "before_id"))
    first = 0 if after is None else after + 1
    end = len(names) if before is None else before
    if before is not None and after is None:  # the page that ends before this model
        first = max(end - limit, 0)
    page = found[first:end][:limit]
    more = first > 0 if before is not None and after is None else end - first > limit
    return responses.json(
        AnthropicModelsResponse(
            data=[_model_object(name, entry) for name, entry in page],
            first_id=page[0][0] if page else None,
            last_id=page[-1][0] if page else None,
            has_more=more,
        )
    )


async def get_model(request: Request) -> Response:
    """``GET /models/{model}``: by name, alias or version."""
    caller = await calls.find_caller(request, Scope.READ)
    name = request.path_params["model"]
    return responses.json(_model_object(name, calls.find_model(request, name, caller, KINDS)))


def _position(request: Request, key: str, names: list[str]) -> int | None:
    """Return the position of the model that a query parameter names; None without the parameter."""
    name = request.query_params.get(key)
    if name is None:
        return None
    if name not in names:
        raise calls.invalid(key, f"there is no model {name[:100]}")
    return names.index(name)


def _model_object(name: str, entry: ServedVersion) -> AnthropicModelResponse:
    created = serializers.timestamp(entry.created_at)
    return AnthropicModelResponse(type="model", id=name, display_name=name, created_at=created)


ROUTES: Final = (
    Route(f"{ANTHROPIC}/v1/messages", create_message, methods=["POST"]),
    Route(f"{ANTHROPIC}/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    Route(f"{ANTHROPIC}/v1/models", list_models, methods=["GET"]),
    Route(f"{ANTHROPIC}/v1/models/{{model:path}}", get_model, methods=["GET"]),
)
