"""All pages, in the order of the navigation. ``layout`` and ``template_pages`` tell how to add one."""

from __future__ import annotations

from typing import Final

from appliance.ui.languages import translatable
from appliance.ui.pages import (
    add,
    api,
    audit,
    chat,
    compare,
    config,
    explore,
    find,
    load_test,
    machine,
    model,
    prediction,
    predictions,
    sessions,
    settings,
    usage,
)
from appliance.ui.template_pages import TemplatePage

#: The page after the sign-in.
FIRST: Final = TemplatePage("/explore", translatable("Models"), explore.ROUTES)
PAGES: Final = (
    FIRST,
    TemplatePage("/chat", translatable("Chat"), chat.ROUTES),
    TemplatePage("/compare", translatable("Compare"), compare.ROUTES),
    TemplatePage("/predictions", translatable("Predictions"), predictions.ROUTES),
    TemplatePage("/p/{id}", translatable("Prediction"), prediction.ROUTES, listed=False),
    TemplatePage("/machine", translatable("Machine"), machine.ROUTES),
    TemplatePage("/usage", translatable("Usage"), usage.ROUTES),
    TemplatePage("/api", translatable("API"), api.ROUTES),
    TemplatePage("/settings", translatable("Settings"), settings.ROUTES, admin=True),
    TemplatePage("/sessions", translatable("Sessions"), sessions.ROUTES, listed=False),
    TemplatePage("/add", translatable("Add a model"), add.ROUTES, listed=False, admin=True),
    TemplatePage("/audit", translatable("Audit log"), audit.ROUTES, listed=False, admin=True),
    TemplatePage("/config", translatable("Configuration"), config.ROUTES, listed=False, admin=True),
    TemplatePage(
        "/models",
        translatable("Settings of a model"),
        (*config.MODEL_ROUTES, *load_test.ROUTES),
        listed=False,
        admin=True,
    ),
    TemplatePage("/_ui/find", translatable("Find"), find.ROUTES, listed=False),
    TemplatePage(
        "/{owner}/{name}", translatable("Model"), model.ROUTES, listed=False
    ),  # last: matches other paths
)
