"""Translated names of states, phases and scopes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from appliance.ui.languages import gettext, translatable

#: Name in the API -> text of the pages. A name that is missing here is shown as the API writes it.
_NAMES: Final[Mapping[str, str]] = {
    # predictions
    "starting": translatable("starting"),
    "processing": translatable("processing"),
    "succeeded": translatable("succeeded"),
    "failed": translatable("failed"),
    "canceled": translatable("canceled"),
    "aborted": translatable("aborted"),
    # phases of a prediction
    "queued": translatable("queued"),
    "running": translatable("running"),
    # models
    "cold": translatable("not loaded"),
    "loading": translatable("loading"),
    "ready": translatable("ready"),
    "loaded": translatable("loaded"),
    "draining": translatable("ready, unloads soon"),
    "unloading": translatable("unloading"),
    "falling asleep": translatable("falling asleep"),
    "asleep": translatable("asleep"),
    "waking": translatable("waking"),
    "broken": translatable("broken"),
    # deliveries of webhooks
    "pending": translatable("pending"),
    "delivered": translatable("delivered"),
    "given up": translatable("given up"),
    # additions, and whether a model fits
    "waiting": translatable("waiting"),
    "downloading": translatable("downloading"),
    "applying": translatable("applying"),
    "fits": translatable("fits"),
    "evicts": translatable("evicts"),
    "does not fit": translatable("does not fit"),
    "not known": translatable("not known"),
    # sources of a memory size
    "declared": translatable("declared"),
    "estimated": translatable("estimated"),
    "measured": translatable("measured"),
    # scopes of tokens
    "admin": translatable("admin"),
    "run": translatable("run"),
    "read": translatable("read"),
    # parts of the data folder
    "weights": translatable("weights"),
    "files": translatable("files"),
    "database": translatable("database"),
    "outputs": translatable("outputs"),
    "logs": translatable("logs"),
    "others": translatable("others"),
}


def state_name(name: str) -> str:
    """Return a name of the API, such as "processing", in the language of the page."""
    text = _NAMES.get(name)
    return name if text is None else gettext(text)
