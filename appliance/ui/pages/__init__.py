"""All pages, in the order of the navigation. ``layout`` and ``template_pages`` tell how to add one."""

from __future__ import annotations

from typing import Final

from appliance.ui.pages import (
    add,
    audit,
    chat,
    compare,
    config,
    explore,
    find,
    load_test,
    machine,
    prediction,
    predictions,
    settings,
    usage,
)
from appliance.ui.template_pages import TemplatePage

#: The page after the sign-in.
FIRST: Final = TemplatePage("/explore", "Models", explore.ROUTES)
PAGES: Final = (
    FIRST,
    TemplatePage("/chat", "Chat", chat.ROUTES),
    TemplatePage("/compare", "Compare", compare.ROUTES),
    TemplatePage("/predictions", "Predictions", predictions.ROUTES),
    TemplatePage("/p/{id}", "Prediction", prediction.ROUTES, listed=False),
    TemplatePage("/machine", "Machine", machine.ROUTES),
    TemplatePage("/usage", "Usage", usage.ROUTES),
    TemplatePage("/settings", "Settings", settings.ROUTES, admin=True),
    TemplatePage("/add", "Add a model", add.ROUTES, listed=False, admin=True),
    TemplatePage("/audit", "Audit log", audit.ROUTES, listed=False, admin=True),
    TemplatePage("/config", "Configuration", config.ROUTES, listed=False, admin=True),
    TemplatePage(
        "/models",
        "Settings of a model",
        (*config.MODEL_ROUTES, *load_test.ROUTES),
        listed=False,
        admin=True,
    ),
    TemplatePage("/_ui/find", "Find", find.ROUTES, listed=False),
)
