"""The HTML of the pages for operators: text from people and models stays text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.protocols.account_types import TokenResponse
from appliance.ui import markup
from appliance.ui.pages import prediction, predictions, settings
from tests.support.response_examples import completed
from tests.unit.ui.test_markup import HOSTILE, inert

TIME = "2026-01-02T03:04:05.678900Z"


def record(text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": text,
        "model": text,
        "status": "failed",
        "owner": text,
        "token": text,
        "token_name": text,
        "hardware": text,
        "cost": 0.25,
        "currency": text,
        "attempts": 2,
        "created_at": TIME,
        "type": "prediction",
        "input": {text: text},
        "output": [text, text],
        "logs": text,
        "error": text,
        "data_removed": False,
        "preview": {"input": text, "output": text},
        "metrics": {"predict_time": 1.5, "cold_start": 2.0, text: text},
        "parent": text,
        "parts": [text],
        "deployment": text,
        "destination": text,
        "webhook": text,
        "webhook_events_filter": [text],
        "deliveries": [
            {"state": "given up", "attempts": 7, "ended_at": TIME, "due_at": None, "problem": text}
        ],
        "timeline": [
            {"phase": "queued", "from": TIME, "to": TIME, "seconds": 1.0},
            {"phase": "running", "from": TIME, "to": None, "seconds": 3.0},
        ],
        "model_state": "cold",
        "newest_version": True,
        "example": True,
        **more,
    }


def test_predictions_are_inert_in_the_list_and_on_their_page() -> None:
    for text in HOSTILE:
        found = record(text)
        inert(predictions.render([found], everyone=True, selectable=True))
        read = inert(prediction.head(found) + prediction.body(found))
        assert text in read.said
        inert(prediction.head(record(text, status="starting", model_state=text)))
        inert(prediction.body(record(text, data_removed=True)))


def test_the_headings_of_a_prediction_are_one_level_below_its_title() -> None:
    found = record("x", status="succeeded")
    shown = prediction.head(found) + prediction.body(found)
    assert set(re.findall(r"<h\d", shown)) == {"<h1", "<h2"}


@pytest.mark.parametrize(
    ("state", "newest", "path"),
    [
        ("ready", True, "/a/b?from=x"),
        ("cold", False, f"/a/b/versions/{'0' * 64}?from=x"),
        (None, False, "/a/b?from=x"),  # its version is gone
    ],
)
def test_what_ran_is_run_again_by_its_version(state: str | None, newest: bool, path: str) -> None:
    made = record("", id="x", model="a/b", version="0" * 64, model_state=state, newest_version=newest)
    assert prediction.again(made) == path


def test_a_timeline_is_drawn_by_what_each_phase_took() -> None:
    read = inert(prediction.timeline(record("x")))
    drawn = {each["class"]: each["style"] for tag, each in read.elements if tag == "i" and "style" in each}
    assert drawn == {"queued": "width:25.000%", "running": "width:75.000%"}


def test_tokens_are_inert() -> None:
    for text in HOSTILE:
        token = {"id": text, "name": text, "owner": text, "scope": "run", "created_at": TIME}
        token["revoked_at"] = TIME
        tokens = [completed(TokenResponse, token), completed(TokenResponse, {**token, "revoked_at": None})]
        listed = settings.by_validity(tokens)
        assert [each.revoked_at for each in listed] == [None, TIME]
        assert text in inert(markup.render("settings_tokens.html", tokens=listed)).said
