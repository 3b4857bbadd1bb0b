"""OpenAI's API over language models: models, chat completions, completions and responses."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import responses
from appliance.gateway.api.compat import audio, embeddings, images
from appliance.gateway.api.compat.calls import CHUNKS, EVENTS, Calls
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Entry
from appliance.runners import kinds_with_operation, operations

#: The kinds that answer at least one route of this API.
KINDS: Final = frozenset(
    {*kinds_with_operation(operations.CHAT), *embeddings.KINDS, *images.KINDS, *audio.HEARS, *audio.SPEAKS}
)


class OpenAI:
    """The routes about models, and those that vLLM's OpenAI classes answer."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._calls = Calls(services)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(f"{OPENAI}/v1/chat/completions", self.chat, methods=["POST"]),
            Route(f"{OPENAI}/v1/responses", self.respond, methods=["POST"]),
            Route(f"{OPENAI}/v1/completions", self.complete, methods=["POST"]),
            Route(f"{OPENAI}/v1/models", self.models, methods=["GET"]),
            Route(f"{OPENAI}/v1/models/{{model:path}}", self.model, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> Response:
        """``POST /chat/completions``."""
        return await self._calls.operate(request, operations.CHAT, CHUNKS, "messages")

    async def complete(self, request: Request) -> Response:
        """``POST /completions``."""
        return await self._calls.operate(request, operations.COMPLETIONS, CHUNKS, "prompt")

    async def respond(self, request: Request) -> Response:
        """``POST /responses``."""
        return await self._calls.operate(request, operations.RESPONSES, EVENTS, "input")

    async def models(self, request: Request) -> Response:
        """``GET /models``: the models that answer a route of this API, without aliases."""
        caller = await self._calls.caller(request, Scope.READ)
        catalogue = self._services.catalogue
        visible = [card for card in catalogue.cards.values() if card.visible(caller.owner)]
        latest = [catalogue.latest(card.name) for card in visible]
        found = [
            _model_object(entry.name, entry) for entry in latest if entry is not None and entry.kind in KINDS
        ]
        return responses.json({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """``GET /models/{model}``: by name, alias or version."""
        caller = await self._calls.caller(request, Scope.READ)
        name = request.path_params["model"]
        return responses.json(_model_object(name, self._calls.entry(name, caller, KINDS)))


def _model_object(name: str, entry: Entry) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(entry.created_at),
        "owned_by": entry.name.partition("/")[0],
    }
