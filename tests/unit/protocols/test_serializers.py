"""Records as JSON, and output as server-sent events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.prediction import Prediction, Status
from appliance.protocols import serializers

BASE = "https://models.example.org"
CREATED = 1_700_000_000.25


def record(**changes: Any) -> Prediction:
    base = Prediction(
        id="kr2d2jhqbsrj60cjb2vtmekgh4",
        model="acme/hello",
        version="0" * 64,
        owner="acme",
        input={"text": "Alice"},
        created_at=CREATED,
        stream_token="f" * 64,
    )
    return base.evolve(**changes)


def body(response: Any) -> Any:
    """What a client reads."""
    return msgspec.json.decode(serializers.encode(response, BASE))


@given(st.floats(min_value=0, max_value=4e9).map(lambda seconds: round(seconds, 6)))
def test_a_timestamp_is_read_back_as_the_same_time(seconds: float) -> None:
    assert datetime.fromisoformat(serializers.timestamp(seconds)).timestamp() == seconds


def test_a_file_that_never_expires_has_a_time() -> None:
    assert serializers.timestamp(serializers.FOR_EVER) == "9999-12-31T23:59:59.000000Z"


def test_a_version_names_the_cog_that_runs_it() -> None:
    old = serializers.version("a" * 64, 1.0, {"info": {"x-cog-version": "0.8.6"}})
    new = serializers.version("b" * 64, 1.0, {"info": {}})
    assert (old.cog_version, new.cog_version) == ("0.8.6", serializers.COG_VERSION)


def test_a_new_prediction() -> None:
    address = f"{BASE}/v1/predictions/kr2d2jhqbsrj60cjb2vtmekgh4"
    assert body(serializers.prediction(record(), BASE)) == {
        "id": "kr2d2jhqbsrj60cjb2vtmekgh4",
        "model": "acme/hello",
        "version": "0" * 64,
        "input": {"text": "Alice"},
        "logs": "",
        "error": None,
        "status": "starting",
        "created_at": "2023-11-14T22:13:20.250000Z",
        "data_removed": False,
        "source": "api",
        "urls": {
            "get": address,
            "cancel": f"{address}/cancel",
            "stream": f"{BASE}/v1/streams/{'f' * 64}",
            "web": f"{BASE}/p/kr2d2jhqbsrj60cjb2vtmekgh4",
        },
    }


def test_what_is_known_later_is_shown_later() -> None:
    finished = record(
        status=Status.SUCCEEDED,
        output="hello",
        started_at=CREATED + 1,
        completed_at=CREATED + 2,
        metrics={"predict_time": 1.0},
        deadline=CREATED + 60,
    )
    shown = body(serializers.prediction(finished, BASE))
    assert shown["output"] == "hello"
    assert shown["started_at"] == "2023-11-14T22:13:21.250000Z"
    assert shown["completed_at"] == "2023-11-14T22:13:22.250000Z"
    assert shown["deadline"] == "2023-11-14T22:14:20.250000Z"
    assert shown["metrics"] == {"predict_time": 1.0}


def test_output_is_absent_until_there_is_some_and_null_only_at_the_end() -> None:
    assert "output" not in body(serializers.prediction(record(status=Status.PROCESSING), BASE))
    assert body(serializers.prediction(record(status=Status.PROCESSING, output=["a"]), BASE))["output"] == [
        "a"
    ]
    assert body(serializers.prediction(record(status=Status.FAILED, error="no"), BASE))["output"] is None


def test_the_answer_to_a_creation_is_starting_without_output_or_final() -> None:
    running = record(status=Status.PROCESSING, output=["seen"], logs="x", started_at=CREATED)
    answer = body(serializers.accepted(running, BASE))
    assert (answer["status"], answer["output"], answer["logs"]) == ("starting", None, "")
    assert "started_at" not in answer
    done = record(status=Status.SUCCEEDED, output=["all"], completed_at=CREATED)
    assert serializers.accepted(done, BASE) == serializers.prediction(done, BASE)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (" world", "data:  world\n"),
        ("a\nb", "data: a\ndata: b\n"),
        ("a\n", "data: a\ndata: \n"),
        ("", "data: \n"),
        ("a\r\nb\rc", "data: a\ndata: b\ndata: c\n"),
        ("größer\u2028", "data: größer\u2028\n"),
    ],
)
def test_text_survives_an_event(text: str, lines: str) -> None:
    assert serializers.event("output", "1:1", text).decode() == f"event: output\nid: 1:1\n{lines}\n"


def test_items_are_numbered_and_what_is_no_text_is_json() -> None:
    sent = serializers.outputs(record(), [(3, "a"), (4, {"b": [1]})], "http://x").decode()
    assert sent == (
        'event: output\nid: 1700000000:3\ndata: a\n\nevent: output\nid: 1700000000:4\ndata: {"b":[1]}\n\n'
    )


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (Status.SUCCEEDED, None, [("done", "{}")]),
        (Status.CANCELED, None, [("done", '{"reason":"canceled"}')]),
        (Status.ABORTED, None, [("done", '{"reason":"canceled"}')]),
        (Status.FAILED, "no", [("error", '{"detail":"no"}'), ("done", '{"reason":"error"}')]),
    ],
)
def test_every_stream_ends_with_done(status: Status, error: str | None, expected: list[Any]) -> None:
    sent = serializers.ending(record(status=status, error=error), 2)
    events = [serializers.event(name, f"1700000000:{n}", data) for n, (name, data) in enumerate(expected, 3)]
    assert sent == b"".join(events)


def test_a_reader_that_comes_back_gets_only_the_rest_of_the_end() -> None:
    failed = record(status=Status.FAILED, error="no")
    assert b"event: error" not in serializers.ending(failed, 2, after=3)
    assert b"event: done" in serializers.ending(failed, 2, after=3)
    assert serializers.ending(failed, 2, after=4) == b""


@pytest.mark.parametrize(
    ("id", "number"),
    [("1700000000:7", 7), ("7", 7), (None, 0), ("", 0), ("x:-1", 0), ("x:y", 0), ("1:" + "9" * 30, 0)],
)
def test_a_last_event_id_is_read_or_everything_is_sent(id: str | None, number: int) -> None:
    assert serializers.event_number(id) == number
