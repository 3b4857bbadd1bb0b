"""Outputs of predictions as HTML: the right element for each file, and text from models stays text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from appliance.runners.echo.runner import EchoRunner
from appliance.runners.vllm.inputs import interface
from appliance.ui import output
from appliance.ui.output import RenderedOutput

ORIGIN = "http://models.example.org"


def document(schema: dict[str, Any], **schemas: Any) -> dict[str, Any]:
    return {"components": {"schemas": {"Output": schema, **schemas}}}


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (interface({}).output, RenderedOutput.TEXT),
        (EchoRunner.interface({"stream": True}).output, RenderedOutput.TEXT),
        (EchoRunner.interface({"files": True}).output, RenderedOutput.FILES),
        ({"type": "string"}, RenderedOutput.TEXT),
        ({"type": "string", "format": "uri"}, RenderedOutput.FILES),
        ({"type": "array", "items": {"type": "string", "format": "uri"}}, RenderedOutput.FILES),
        ({"type": "array", "items": {"type": "string"}}, RenderedOutput.DATA),
        ({"type": "object"}, RenderedOutput.DATA),
        ({"$ref": "#/components/schemas/Made"}, RenderedOutput.FILES),
        ({}, RenderedOutput.DATA),
    ],
)
def test_what_a_model_gives_follows_from_its_schema(schema: dict[str, Any], kind: RenderedOutput) -> None:
    made = {"type": "string", "format": "uri"}
    assert output.kind_of(document(schema, Made=made)) is kind


class Read(HTMLParser):
    """The tags of a text, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(str(text))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_each_file_is_shown_as_what_it_is() -> None:
    made = [f"{ORIGIN}/outputs/1/{name}" for name in ("a.png", "b.wav", "c.mp4", "d.tar")]
    read = Read(output.files({"many": made, "one": "data:image/png;base64,AA=="}))
    shown = [(tag, given["src"]) for tag, given in read.tags if "src" in given]
    assert shown == [
        ("img", "./outputs/1/a.png"),
        ("audio", "./outputs/1/b.wav"),
        ("video", "./outputs/1/c.mp4"),
        ("img", "data:image/png;base64,AA=="),
    ]
    downloads = [given["href"] for tag, given in read.tags if "download" in given]
    assert len(downloads) == 5


def test_what_a_model_says_stays_text() -> None:
    evil = f'{ORIGIN}/outputs/1/"><script>alert(1)</script>.png'
    foreign = "https://evil.example/x.png"
    same_beginning = f"{ORIGIN}.evil.example/x.png"
    broken = "http://["
    inline = 'data:text/html,"><script>alert(1)</script>'
    read = Read(output.files([evil, foreign, same_beginning, broken, inline, "javascript:alert(1)"]))
    assert not any(tag == "script" for tag, _ in read.tags)
    assert {given["src"] for _, given in read.tags if "src" in given} == {f".{evil.removeprefix(ORIGIN)}"}
    links = [given for tag, given in read.tags if tag == "a" and given.get("rel")]
    assert [given["href"] for given in links] == [foreign, same_beginning, broken]  # linked, and not loaded
    assert output.files(["text", 3, None]) == ""


@pytest.mark.parametrize(
    ("logs", "percent"),
    [
        ("", None),
        ("hello 5%", None),
        (" 10%|#   | 1/10\r 40%|####  | 4/10 [00:01]", 40),
        ("100%|##########|", 100),
    ],
)
def test_the_last_progress_bar_counts(logs: str, percent: int | None) -> None:
    assert output.progress(logs) == percent


def test_text_is_the_pieces_together() -> None:
    assert output.text_of(["a", " <b>"]) == "a <b>"
    assert output.text_of("x") == "x"
    assert output.text_of(None) == ""
