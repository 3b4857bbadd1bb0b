"""Pieces of HTML: text from people and models stays text, and files become images and players."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from appliance.ui import markup
from appliance.ui.markup import BarSegment

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre><iframe src=javascript:alert(1)>",
    "data:text/html,<script>alert(1)</script>",
    "data:image/svg+xml,<svg onload=alert(1)>",
    'data:image/png,"onerror="alert(1)',
    "javascript:alert(1)",
    'https://example.org/outputs/a.png"onerror="alert(1)',
    "http://[",
)
#: The tags and attributes that our own HTML is made of.
TAGS = {
    "a", "audio", "b", "button", "code", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "form",
    "h1", "h2", "h3", "i", "img", "input", "label", "li", "ol", "p", "path", "polygon", "pre", "progress",
    "section", "span", "strong", "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "time",
    "title", "tr", "ul", "video",
}  # fmt: skip
ATTRIBUTES = {
    "alt", "aria-hidden", "aria-label", "class", "controls", "d", "data-act", "data-end", "data-label",
    "data-model", "data-name", "data-revoke", "data-start", "data-subtitles", "datetime", "download",
    "hidden", "href", "id", "loading", "max", "min", "playsinline", "points", "preload",
    "preserveaspectratio", "role", "scope", "src", "style", "tabindex", "target", "text-anchor", "title",
    "type", "value", "viewbox", "x", "y",
}  # fmt: skip


class Reader(HTMLParser):
    """What a browser would make of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(str(html))  # Markup would escape what is added to it
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data


def inert(html: str) -> Reader:
    """Parse HTML, and check that it has only our own tags, attributes and URLs."""
    read = Reader(html)
    for tag, attributes in read.elements:
        assert tag in TAGS, html
        assert set(attributes) <= ATTRIBUTES, html
        for name in ("href", "src"):
            url = attributes.get(name) or "./"
            kept = name == "href" and "download" in attributes  # it is saved, and never opened
            assert url.startswith(("./", "data:" if kept else "data:image/")), html
    return read


@pytest.mark.parametrize("text", HOSTILE)
def test_what_people_wrote_is_inert_and_can_be_read(text: str) -> None:
    assert inert(markup.text(text)).said == text
    for given in (text, [text, text], {"a": text}, [{"b": [text]}], {text: {text: text}}):
        inert(markup.value(given))
    inert(markup.badge(text))
    inert(markup.link(f"/{text}", text))
    inert(markup.link(f"/p/{text}", text))
    inert(markup.table([text], [[text]]))
    inert(markup.bar([BarSegment(text, 1, "c0")], 1, label=text))
    inert(markup.pairs({text: text}))
    inert(markup.tiles({text: text}))


@pytest.mark.parametrize(
    ("output", "tags"),
    [
        ("http://x:1/outputs/0/a.png", ["img"]),
        ("https://x/outputs/0/a.mp3", ["audio"]),
        ("https://x/outputs/0/a.mp4", ["video"]),
        ("https://x/outputs/0/a.zip", []),
        (["https://x/outputs/0/a.png", "https://x/outputs/1/b.png"], ["img", "img"]),
        ({"mask": "https://x/outputs/0/a.png", "score": 1}, ["dl", "dt", "dd", "img", "dt", "dd", "pre"]),
        ("data:image/png;base64,aaaa", ["img"]),
        ("https://elsewhere.example/a.png", ["pre"]),
        ("plain", ["pre"]),
        (["Once", " upon"], ["pre"]),
        ({"a": 1}, ["pre"]),
    ],
)
def test_a_value_is_shown_as_what_it_is(output: Any, tags: list[str]) -> None:
    read = inert(markup.value(output))
    shown = {"img", "audio", "video", "pre", "dl", "dt", "dd"}
    assert [tag for tag, _ in read.elements if tag in shown] == tags
    files = sum(tag == "figure" for tag, _ in read.elements)
    assert sum("download" in attributes for _, attributes in read.elements) == files
    assert files == str(output).count("/outputs/") + str(output).count("data:")


def test_streamed_words_are_one_text_and_long_ones_are_cut() -> None:
    assert inert(markup.value(["Once", " upon"])).said == "Once upon"
    assert len(inert(markup.text("x" * 10 * markup.LONGEST)).said) < 2 * markup.LONGEST


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.25, "250 ms"),
        (1.25, "1.2 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert markup.duration(seconds) == text


@pytest.mark.parametrize(
    ("timestamp", "shown"),
    [
        ("2026-01-08T03:04:03Z", "just now"),
        ("2026-01-08T03:04:12Z", "in 7 s"),
        ("2026-01-08T03:01:01Z", "3 min ago"),
        ("2026-01-07T00:00:00Z", "1 d ago"),
        ("2026-01-01T03:04:05Z", "2026-01-01"),
    ],
)
def test_a_time_is_told_by_how_long_ago_it_is(timestamp: str, shown: str) -> None:
    now = datetime(2026, 1, 8, 3, 4, 5, tzinfo=UTC)
    assert markup.moment(timestamp, now) == f'<time datetime="{timestamp}">{shown}</time>'
    assert markup.moment(None) == ""
