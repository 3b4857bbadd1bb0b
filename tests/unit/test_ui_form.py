"""The components of a model's inputs, and what they mean together. Gradio builds on a running loop."""

from __future__ import annotations

from typing import Any

import gradio as gr

from appliance.runners.echo import EchoRunner
from appliance.ui.form import Form
from appliance.ui.snippets import LocalFile


def form() -> Form:
    model = EchoRunner.interface({"files": True})
    with gr.Blocks(analytics_enabled=False):
        return Form({"components": {"schemas": {"Input": model.input, **model.components}}})


def values(form: Form, **changed: Any) -> list[Any]:
    """What the components hold as a browser first shows them, but for some by the names of their inputs."""
    return [
        changed.get(str(part.elem_id).removeprefix("input-").replace("-", "_"), part.value)
        for part in form.components
    ]


async def test_a_form_that_nobody_touched_asks_for_nothing_special() -> None:
    made = form()
    assert made.filled_in(values(made)) == {}


async def test_files_that_are_picked_come_before_addresses() -> None:
    made = form()
    given = values(
        made,
        text="x",
        exit_code="7",
        file="/tmp/a.png",
        files=["/tmp/b"],
        files_address=" http://c \n\nhttp://d",
    )
    assert made.filled_in(given) == {
        "text": "x",
        "exit_code": 7,
        "file": LocalFile("/tmp/a.png"),
        "files": [LocalFile("/tmp/b"), "http://c", "http://d"],
    }
    assert made.filled_in(values(made, file_address="http://e"))["file"] == "http://e"


async def test_an_earlier_input_is_shown_and_means_the_same() -> None:
    made = form()
    input = {"text": "x", "repeat": 3, "exit_code": 1, "file": "http://a", "files": ["http://b", "http://c"]}
    assert made.filled_in(made.shown(input)) == input
