"""All pages, in the order of the navigation. ``appliance.ui.layout`` documents how to add a page."""

from __future__ import annotations

from typing import Final

from appliance.ui.layout import Page
from appliance.ui.pages import explore, machine, prediction, predictions, settings, usage

#: The page after the sign-in.
FIRST: Final = Page("/explore", "Models", explore.build)
PAGES: Final = (
    FIRST,
    Page("/predictions", "Predictions", predictions.build),
    Page("/p/{id}", "Prediction", prediction.build, listed=False),
    Page("/machine", "Machine", machine.build),
    Page("/usage", "Usage", usage.build),
    Page("/settings", "Settings", settings.build, admin=True),
)
