"""The pages, in the order of the navigation. ``appliance.ui.shell`` says how one is added."""

from __future__ import annotations

from typing import Final

from appliance.ui.pages import explore
from appliance.ui.shell import Page

#: Where one begins.
FIRST: Final = Page("/explore", "Models", explore.build)
PAGES: Final = (FIRST,)
