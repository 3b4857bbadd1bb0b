"""The components of a form and of a result. Gradio builds them on a running event loop."""

from __future__ import annotations

import functools
from typing import Any

import gradio as gr

from appliance.protocols.admin_types import ModelStatus
from appliance.runners.echo.runner import EchoRunner
from appliance.ui.form import ModelForm, Result
from appliance.ui.output import RenderedOutput
from appliance.ui.snippets import LocalFile
from appliance.ui.watcher import Snapshot
from tests.support.response_examples import completed


@functools.cache  # Gradio takes half a second to build it, and it holds no values
def form() -> ModelForm:
    model = EchoRunner.interface({"files": True})
    with gr.Blocks(analytics_enabled=False):
        return ModelForm({"components": {"schemas": {"Input": model.input, **model.components}}})


def values(form: ModelForm, **changed: Any) -> list[Any]:
    """Return the first values of the components, except for those of the inputs in ``changed``."""
    return [
        changed.get(str(part.elem_id).removeprefix("input-").replace("-", "_"), part.value)
        for part in form.components
    ]


async def test_a_form_that_nobody_touched_asks_for_nothing_special() -> None:
    made = form()
    assert made.read_input(values(made)) == {}


async def test_uploads_have_priority_over_urls() -> None:
    made = form()
    given = values(
        made,
        text="x",
        exit_code="7",
        file="/tmp/a.png",
        files=["/tmp/b"],
        files_address=" http://c \n\nhttp://d",
    )
    assert made.read_input(given) == {
        "text": "x",
        "exit_code": 7,
        "file": LocalFile("/tmp/a.png"),
        "files": [LocalFile("/tmp/b"), "http://c", "http://d"],
    }
    assert made.read_input(values(made, file_address="http://e"))["file"] == "http://e"


async def test_an_earlier_input_is_shown_and_means_the_same() -> None:
    made = form()
    input = {"text": "x", "repeat": 3, "exit_code": 1, "file": "http://a", "files": ["http://b", "http://c"]}
    assert made.read_input(made.values_of(input)) == input


@functools.cache
def result() -> Result:
    with gr.Blocks(analytics_enabled=False):
        return Result(RenderedOutput.TEXT)


def status_of(
    status: str, *, model: ModelStatus | None = None, items: tuple[str, ...] = (), **record: Any
) -> str:
    """Return the status of the result as HTML."""
    snapshot = Snapshot(
        record={"id": "abcdefghij", "status": status, **record}, items=list(items), seconds=4.2, model=model
    )
    first, *_ = result().updates(snapshot, [])
    return str(first)


async def test_the_status_describes_a_prediction() -> None:
    loading = {"waits_for": "load", "queue_position": 2}
    said = status_of("starting", metrics=loading, model=completed(ModelStatus, {"load_seconds": 30.4}))
    assert "4 s of about 30 · waiting until the model is loaded, position 2" in said
    assert 'badge starting"' in said
    assert 'badge processing"' in status_of("starting", metrics={}, items=("a",))  # it has begun since
    running = status_of("processing", logs=" 10%|# | 1/10\r 40%|#### | 4/10")
    assert '<progress max="100" value="40">' in running
    over = status_of("succeeded", metrics={"predict_time": 1.5, "output_token_count": 1200}, output="x")
    assert "1.50 s · 1,200 tokens" in over
    assert "<progress" not in over
    failed = status_of("failed", error="<b>no</b>", output=None)
    assert "&lt;b&gt;no&lt;/b&gt;" in failed


async def test_only_changed_values_are_sent() -> None:
    updates = result().updates
    before: list[Any] = []
    record = {"id": "x", "status": "processing", "logs": "same"}
    updates(Snapshot(record=record, items=["a"], seconds=1.0), before)
    again = updates(Snapshot(record=record, items=["a", "b"], seconds=1.0), before)
    changed = [value for value in again if value != gr.skip()]
    assert changed == ["ab"]
