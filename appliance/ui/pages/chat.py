"""The chat page, for models that answer OpenAI's chat completions. Its scripts are ``static/chat*.js``.

The conversations are those of the account, from ``/admin/conversations``.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import NotFound
from appliance.protocols.admin_types import ApplianceStatusResponse
from appliance.protocols.response_types import ModelResponse
from appliance.runners import kinds_with_operation, operations
from appliance.ui import session, template_pages
from appliance.ui.client import Caller
from appliance.ui.languages import gettext as _

#: The kinds of models that can chat.
KINDS: Final = kinds_with_operation(operations.CHAT)
_IMAGES: Final = {"image", "images"}  # inputs of models that accept images


async def show(request: Request) -> Response:
    """Return the page of a new chat, or of the conversation with the id in the path.

    Raises:
        NotFound: the account has no such conversation.
    """
    user = session.current(request)
    id = request.path_params.get("id")
    conversation = None if id is None else await user.caller.get(f"/admin/conversations/{id}")
    models, conversations = await asyncio.gather(
        _models(user.caller), user.caller.get("/admin/conversations")
    )
    data = {
        "account": user.username,
        "mayRun": user.may_run,
        "models": models,
        "conversations": conversations["results"],
        "conversation": conversation,
    }
    title = _("Chat") if conversation is None else conversation["title"]
    return template_pages.respond(request, "chat.html", title=title, models=models, data=data)


async def _models(caller: Caller) -> list[dict[str, Any]]:
    """Return name and abilities of each model that can chat and that the user may call."""
    status = await caller.get_as(ApplianceStatusResponse, "/admin/status")
    names = sorted(model.name for model in status.models if model.kind in KINDS)
    found = await asyncio.gather(*(_model(caller, name) for name in names))
    return [model for model in found if model is not None]


async def _model(caller: Caller, name: str) -> dict[str, Any] | None:
    try:
        found = await caller.get_as(ModelResponse, f"/v1/models/{name}")
    except NotFound:  # a private model of another account
        return None
    if found.latest_version is None:
        return None
    schemas = found.latest_version.openapi_schema["components"]["schemas"]
    inputs = schemas.get("Input", {}).get("properties", {})
    return {"name": name, "images": not _IMAGES.isdisjoint(inputs)}


ROUTES: Final = (Route("/chat", show), Route("/chat/{id}", show))
