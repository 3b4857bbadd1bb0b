"""The first steps: which model they show, and the lines for its clients."""

from __future__ import annotations

from typing import Any

from appliance.protocols.response_types import ModelResponse, VersionResponse
from appliance.runners import KINDS
from appliance.ui import first_steps
from tests.support.response_examples import completed

BASE = "http://models.example.org:8000"


def model(name: str, **more: Any) -> ModelResponse:
    schemas = {"Output": {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}}
    version = completed(VersionResponse, {"openapi_schema": {"components": {"schemas": schemas}}})
    owner, _, rest = name.partition("/")
    return completed(ModelResponse, {"owner": owner, "name": rest, "latest_version": version, **more})


def test_the_first_model_is_of_the_kind_that_people_like_to_see_first() -> None:
    models = [model("a/echo"), model("a/voice"), model("a/writer")]
    kinds = {"a/echo": "echo", "a/voice": "piper", "a/writer": "vllm"}
    shown = first_steps.steps(models, kinds, BASE)
    assert shown is not None
    assert (shown["model"], shown["field"]) == ("a/writer", "prompt")
    programs = {id: text for id, _, text in shown["programs"]}
    assert list(programs) == ["python", "javascript", "curl", "openai"]
    for text in programs.values():
        assert BASE in text
        assert "a/writer" in text
        assert "Write one sentence about the sea." in text
        assert "<your token>" in text
    assert first_steps.steps(models[:1], {"a/echo": "whisper"}, BASE) is None
    assert first_steps.steps([model("a/writer", latest_version=None)], kinds, BASE) is None


def test_each_kind_with_a_text_input_has_an_example() -> None:
    assert set(first_steps.EXAMPLES) == {name for name, kind in KINDS.items() if kind.example_input}
