"""The page that runs several models, or one model with several settings, on the same prompt side by side.

The script ``compare.js`` creates the predictions and follows them. The prompt, the columns and the ids of the
predictions are in the address.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols import api_client
from appliance.protocols.admin_types import UsageResponse
from appliance.protocols.response_types import ModelResponse
from appliance.ui import fields, output, session, template_pages
from appliance.ui.fields import Widget
from appliance.ui.languages import gettext as _

#: Fewest and most columns.
COLUMNS: Final = (2, 4)
#: Names of inputs that are the prompt of a model, most likely first.
_PROMPTS: Final = ("prompt", "text", "input", "query")


async def show(request: Request) -> Response:
    caller = session.current(request).caller
    listed = await caller.all_pages("/v1/models", sort_by="model_created_at")
    today = datetime.now(UTC).date().isoformat()
    usage = await caller.get_as(UsageResponse, "/admin/usage", **{"from": today, "by": "day"})
    models = [comparable(model) for model in api_client.convert(listed, list[ModelResponse])]
    return template_pages.respond(
        request,
        "compare.html",
        title=_("Compare"),
        data={
            "models": [model for model in models if model is not None],
            "least": COLUMNS[0],
            "most": COLUMNS[1],
            "currency": usage.currency,  # None: no prices, and no costs
        },
    )


def comparable(model: ModelResponse) -> dict[str, Any] | None:
    """Return what the script needs to know of a model; None if the model has no version or no text input."""
    document = None if model.latest_version is None else model.latest_version.openapi_schema
    prompt = None if document is None else prompt_input(document)
    if document is None or prompt is None:
        return None
    return {
        "name": f"{model.owner}/{model.name}",
        "prompt": prompt,
        "output": output.kind_of(document).value,
        "streams": _streams(document),
    }


def prompt_input(document: Mapping[str, Any]) -> str | None:
    """Return the name of the input that takes the prompt; None if the model has no text input.

    ``document`` is the OpenAPI document of a version.
    """
    found = fields.fields(document)
    texts = [field for field in found if field.widget in {Widget.LINE, Widget.TEXT}]
    named = [field for name in _PROMPTS for field in texts if field.name == name]
    required = [field for field in texts if field.required]
    return next((field.name for field in (*named, *required)), None)


def _streams(document: Mapping[str, Any]) -> bool:
    """Return whether the model streams text."""
    declared = document["components"]["schemas"].get("Output", {})
    return (
        output.kind_of(document) is output.RenderedOutput.TEXT
        and declared.get("x-cog-array-type") == "iterator"
    )


ROUTES: Final = (Route("/compare", show),)
