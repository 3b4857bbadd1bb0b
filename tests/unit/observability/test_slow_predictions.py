"""The log of slow predictions."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import replace

from appliance.domain.prediction import Prediction, Status
from appliance.observability.slow_predictions import SlowPredictions

RECORD = Prediction(
    id="abc",
    model="a/b",
    version="f" * 64,
    owner="me",
    input={"text": "a secret"},
    status=Status.SUCCEEDED,
    source="api",
    created_at=100.0,
    started_at=107.0,
    completed_at=120.0,
    stream_token="",
    metrics={"cold_start": 5.0, "predict_time": 12.5},
)


def test_a_slow_prediction_is_logged_with_its_phases(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowPredictions(19.0)
    slow.observe(replace(RECORD, status=Status.PROCESSING, completed_at=None))
    with caplog.at_level(logging.WARNING):
        slow.observe(RECORD)
    (message,) = caplog.messages
    assert message.startswith("prediction abc of model a/b took 20.0 s: ")
    assert message.endswith("queued 2.0 s, load 5.0 s, run 12.5 s, other 0.5 s (succeeded)")


def test_a_prediction_that_never_started_only_waited(caplog: pytest.LogCaptureFixture) -> None:
    SlowPredictions(1.0).observe(replace(RECORD, status=Status.CANCELED, started_at=None, metrics={}))
    assert "took 20.0 s: queued 20.0 s, load 0.0 s, run 0.0 s, other 0.0 s (canceled)" in caplog.text


@pytest.mark.parametrize("after", [None, 20.0])
def test_other_predictions_are_not_logged(caplog: pytest.LogCaptureFixture, after: float | None) -> None:
    SlowPredictions(after).observe(RECORD)
    assert caplog.messages == []
