"""Gradio's theme.

Pages use fonts of the user's machine, because they load nothing from other servers.
"""

from __future__ import annotations

from typing import Final

import gradio as gr
from gradio.themes.utils import colors, sizes

_SANS: Final = (
    "ui-sans-serif",
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica",
    "sans-serif",
)
_MONO: Final = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=colors.slate,
        radius_size=sizes.radius_md,
        font=_SANS,
        font_mono=_MONO,
    )
    return base.set(
        body_background_fill="#f6f8fb",
        body_background_fill_dark="#0b1120",
        body_text_color="#0f172a",
        body_text_color_dark="#e6edf6",
        body_text_color_subdued="#475569",
        body_text_color_subdued_dark="#9fb0c6",
        block_background_fill="#ffffff",
        block_background_fill_dark="#121b2f",
        block_border_width="1px",
        block_border_color="#e2e8f0",
        block_border_color_dark="#223049",
        block_label_text_color="#334155",
        block_label_text_color_dark="#cbd5e1",
        block_title_text_color="#0f172a",
        block_title_text_color_dark="#e2e8f0",
        block_title_text_weight="600",
        input_border_width="1px",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0b1120",
        input_border_color="#7c8ba1",
        input_border_color_dark="#6b7d96",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#115e59",
        input_border_color_focus="#0f766e",
        input_border_color_focus_dark="#2dd4bf",
        button_secondary_border_color="#7c8ba1",
        button_secondary_border_color_dark="#6b7d96",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )
