"""Routes of OpenAI's API for language models: models, chat completions and completions."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import CHUNKS
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.protocols.compat_types import (
    ChatCompletionRequest,
    CompletionRequest,
    OpenAIModelResponse,
    OpenAIModelsResponse,
)
from appliance.runners import kinds_with_operation, operations

#: The kinds of models that at least one route of this API can call.
KINDS: Final = kinds_with_operation(*operations.OPENAI, operations.RERANK)


async def create_chat_completion(request: Request) -> Response:
    return await calls.run_operation(request, operations.CHAT, CHUNKS, ChatCompletionRequest)


async def create_completion(request: Request) -> Response:
    return await calls.run_operation(request, operations.COMPLETIONS, CHUNKS, CompletionRequest)


async def list_models(request: Request) -> Response:
    """``GET /models``: the models that a route of this API can call, with aliases without a slash."""
    caller = await calls.find_caller(request, Scope.READ)
    found = [
        _model_object(name, entry)
        for name, entry in calls.list_models(request, caller, KINDS)
        if not entry.model.options.refusal(operations.RERANK)
    ]
    return responses.json(OpenAIModelsResponse(object="list", data=found))


async def get_model(request: Request) -> Response:
    """``GET /models/{model}``: by name, alias or version."""
    caller = await calls.find_caller(request, Scope.READ)
    name = request.path_params["model"]
    entry = calls.find_model(request, name, caller, KINDS, operations.RERANK)
    return responses.json(_model_object(name, entry))


def _model_object(name: str, entry: ServedVersion) -> OpenAIModelResponse:
    return OpenAIModelResponse(
        id=name,
        object="model",
        created=int(entry.created_at),
        owned_by=entry.name.partition("/")[0],
    )


ROUTES: Final = (
    Route(f"{OPENAI}/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route(f"{OPENAI}/v1/completions", create_completion, methods=["POST"]),
    Route(f"{OPENAI}/v1/models", list_models, methods=["GET"]),
    Route(f"{OPENAI}/v1/models/{{model:path}}", get_model, methods=["GET"]),
)
