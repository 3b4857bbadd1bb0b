"""What the states of a prediction of an image become."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.prediction import Log, Metric, Output
from appliance.runners.cog import image_runner, runner


def test_each_state_gives_only_what_is_new() -> None:
    progress = image_runner._Progress(iterates=True)
    states: list[dict[str, Any]] = [
        {"status": "processing", "output": ["a"], "logs": "one\n"},
        {"status": "processing", "output": ["a", "b"], "logs": "one\n"},
        {
            "status": "succeeded",
            "output": ["a", "b"],
            "logs": "one\ntwo\n",
            "metrics": {"predict_time": 1, "n": 2},
        },
    ]
    assert [progress.events(state) for state in states] == [
        [Log("one\n"), Output(["a"])],
        [Output(["b"])],
        [Log("two\n"), Metric("n", 2)],
    ]


def test_an_output_that_is_no_iterator_comes_with_success() -> None:
    progress = image_runner._Progress(iterates=False)
    assert progress.events({"status": "processing", "output": ["a"], "logs": ""}) == []
    assert progress.events({"status": "succeeded", "output": ["a"]}) == [Output([["a"]], append=False)]
    assert image_runner._Progress(iterates=False).events({"status": "failed", "output": None}) == []


@pytest.mark.parametrize(
    ("error", "plain"),
    [
        ("Prediction failed: Prediction failed: ValueError: broken", "broken"),
        ("ValueError: raised by the project", "ValueError: raised by the project"),
    ],
)
def test_only_the_prefixes_of_the_runtime_are_removed(error: str, plain: str) -> None:
    assert runner.without_prefixes(error) == plain
