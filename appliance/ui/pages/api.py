"""The page about the API: its URL, first programs, and every operation of the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols import api_client
from appliance.protocols.admin_types import ApplianceStatusResponse
from appliance.protocols.response_types import ModelResponse
from appliance.ui import first_steps, reference, session, template_pages
from appliance.ui.languages import gettext as _


async def show(request: Request) -> Response:
    caller = session.current(request).caller
    document, status, listed = await asyncio.gather(
        caller.get("/openapi.json"),
        caller.get_as(ApplianceStatusResponse, "/admin/status"),
        caller.all_pages("/v1/models", sort_by="model_created_at"),
    )
    models = api_client.convert(listed, list[ModelResponse])
    kinds = {one.name: one.kind for one in status.models}
    steps = first_steps.steps(models, kinds, caller.base_url)
    groups = reference.groups(document, caller.base_url)
    return template_pages.respond(
        request,
        "api.html",
        title=_("API"),
        base_url=caller.base_url,
        programs=[] if steps is None else steps["programs"],
        groups=groups,
        count=sum(len(operations) for _name, operations in groups),
    )


ROUTES: Final = (Route("/api", show),)
