"""The HTML of the pages for operators: text from people and models stays text."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    ResidencyResponse,
    TokenResponse,
    UsageResponse,
)
from appliance.ui import markup
from appliance.ui.pages import machine, prediction, predictions, settings, usage
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
        inert(predictions.render([found], everyone=True))
        read = inert(prediction.head(found) + prediction.body(found))
        assert text in read.said
        inert(prediction.head(record(text, status="starting", model_state=text)))
        inert(prediction.body(record(text, data_removed=True)))


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


def test_tokens_rows_of_usage_and_decisions_are_inert() -> None:
    for text in HOSTILE:
        token = {"id": text, "name": text, "owner": text, "scope": "run", "created_at": TIME}
        token["revoked_at"] = TIME
        tokens = [completed(TokenResponse, token), completed(TokenResponse, {**token, "revoked_at": None})]
        listed = settings.by_validity(tokens)
        assert [each.revoked_at for each in listed] == [None, TIME]
        assert text in inert(markup.render("settings_tokens.html", tokens=listed)).said
        row = {
            "model": text, "token": text, "token_name": text, "predictions": 2, "failed": 0,
            "predict_time": 1.25, "cost": 0.5, "input_tokens": 3, "output_tokens": 4, "cold_starts": 1,
        }  # fmt: skip
        report = completed(
            UsageResponse, {"by": ["model", "token"], "currency": text, "rows": [row], "total": row}
        )
        said = inert(usage.render_totals(report) + usage.render(report)).said
        assert "50 %" in said
        decision = {"at": TIME, "what": text, "model": text, "why": text, "memory": 1, "seconds": None}
        waiting = {"position": 1, "model": text, "queued": 1, "waited": 2.0, "cleared_for_it": [text]}
        residency = completed(ResidencyResponse, {"waiting": [waiting], "decisions": [decision]})
        assert text in inert(machine.render_decisions(residency)).said


def test_a_device_is_a_bar_of_who_holds_it() -> None:
    memory = {"bytes": 2**30, "share": None, "from": "estimated", "exceeds": False, "fits": False}
    model = {
        "name": "a/b", "state": "ready", "queued": 3, "running": 1, "devices": ["gpu"], "pinned": True,
        "memory": memory,
    }  # fmt: skip
    device = {
        "name": "gpu", "label": "A <GPU>", "memory": 8 * 2**30, "free": 4 * 2**30, "foreign": 2**30,
        "reserved": {"a/b": 2 * 2**30, "a/gone": 2**30},
    }  # fmt: skip
    status = completed(ApplianceStatusResponse, {"models": [model], "devices": [device]})
    read = inert(machine.render_devices(status))
    drawn = [each["style"] for tag, each in read.elements if tag == "i" and "style" in each]
    assert drawn == ["width:25.000%", "width:12.500%", "width:12.500%", "width:50.000%"]
    for said in ("a/b 2.0 GiB, ready", "other programs 1.0 GiB", "free 4.0 GiB", "3.0 GiB of 8.0 GiB"):
        assert said in read.said
    row = inert(machine.render_models(status)).said
    assert "1.0 GiB estimated does not fit" in row
    assert "pinned" in row


def test_models_that_cannot_be_served_are_shown_with_the_reason() -> None:
    for text in HOSTILE:
        left_out = {"not_served": [{"name": "a/b", "problem": text}]}
        read = inert(machine.render_models(completed(ApplianceStatusResponse, left_out)))
        assert "Not served" in read.said
        assert text in read.said
