"""A model's page. Its form follows in the next change; for now it says what the model is."""

from __future__ import annotations

from typing import Any

import gradio as gr
import msgspec

from appliance.ui import shell


class Shown(msgspec.Struct, frozen=True):
    """What of a model its page is built from."""

    name: str  # owner/name
    description: str

    @classmethod
    def of(cls, model: dict[str, Any]) -> Shown:
        """From the API's description of it."""
        return cls(f"{model['owner']}/{model['name']}", model["description"] or "")


def build(shown: Shown) -> gr.Blocks:
    """The page of one model."""
    with shell.page(shown.name) as blocks:
        gr.Textbox(shown.description, label=shown.name, interactive=False)
    return blocks
