"""Previews of inputs and outputs: one short line of text."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.file import OutputFile
from appliance.protocols.preview import LENGTH, preview

FILE = OutputFile(
    id="x", name="out-0.webp", content_type="image/webp", size=400, sha256="0", md5="0", path="/x/out-0.webp"
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("two\n  lines", "two lines"),
        ({"prompt": "a cat"}, "a cat"),
        ({"prompt": "a cat", "steps": 4, "safe": True}, "prompt: a cat, steps: 4, safe: true"),
        (["Once", " upon", " a time"], "Once upon a time"),
        (["https://x/a.png", "https://x/b.png"], "https://x/a.png, https://x/b.png"),
        ([{"score": 0.5}, {"score": 0.25}], "0.5, 0.25"),
        ({}, ""),
        ([FILE, FILE], "out-0.webp, out-0.webp"),
        ({"image": FILE, "seed": 1}, "image: out-0.webp, seed: 1"),
    ],
)
def test_a_preview_is_one_line(value: Any, text: str) -> None:
    assert preview(value) == text


def test_a_long_value_is_cut_off() -> None:
    for value in ("x" * 10_000, ["x" * 10] * 1000, {"a": "x" * 10_000, "b": 1}):
        found = preview(value)
        assert len(found) == LENGTH
        assert found.endswith("x…")
