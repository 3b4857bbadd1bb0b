"""The default language model under concurrency, and what cancelling it frees."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import LANGUAGE_MODEL
from tests.support.appliance_process import PATIENCE, TOKEN, Appliance, http_client, wait_for

pytestmark = pytest.mark.e2e

SUBJECTS = (
    "the sea", "a clock", "winter", "bread", "a train", "music", "rain", "a garden", "the moon", "a river",
    "a bridge", "coffee", "a library", "the desert", "a dog", "paper", "iron", "a festival", "wool", "glass",
)  # fmt: skip


def events(url: str, headers: dict[str, str] | None = None) -> list[dict[str, str]]:
    """Every server-sent event of a stream, in order, comments left out."""
    found: list[dict[str, str]] = []
    with http_client() as client, client.stream("GET", url, headers=headers) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].split(";")[0] == "text/event-stream"
        current: dict[str, str] = {}
        for line in reply.read().decode().split("\n"):  # `iter_lines` ends lines at U+2028 too
            if not line:
                if current:
                    found.append(current)
                current = {}
            elif not line.startswith(":"):
                key, _, value = line.partition(": ")
                key = key.removesuffix(":")
                current[key] = f"{current[key]}\n{value}" if key in current else value
    return found


def create(client: httpx.Client, **input: Any) -> dict[str, Any]:
    reply = client.post("/v1/predictions", json={"version": LANGUAGE_MODEL, "input": input})
    assert reply.status_code == 201, reply.text
    created: dict[str, Any] = reply.json()
    return created


def streamed_text(appliance: Appliance, prompt: str) -> str:
    with appliance.client() as client:
        created = create(client, prompt=prompt, temperature=0, max_tokens=10)
    found = events(created["urls"]["stream"])
    assert found[-1] == {"event": "done", "id": found[-1]["id"], "data": "{}"}
    assert {event["event"] for event in found[:-1]} == {"output"}
    return "".join(event["data"] for event in found[:-1])


def test_twenty_concurrent_streams_equal_the_same_prompts_alone(
    appliance: Appliance, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [f"Write one sentence about {subject}." for subject in SUBJECTS]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda prompt: streamed_text(appliance, prompt), prompts))
    alone = [streamed_text(appliance, prompt) for prompt in prompts]
    equal = sum(one == other for one, other in zip(together, alone, strict=True))
    with capsys.disabled():
        print(f"\n{equal} of 20 concurrent streams equal the same prompt alone")
    assert all(together)
    assert equal >= 18


def test_cancel_in_mid_stream_ends_it_keeps_what_came_and_frees_the_slot(client: httpx.Client) -> None:
    asked = {"prompt": "Count from 1 to 1000.", "max_tokens": 1500, "min_tokens": 1500}
    created, other = create(client, **asked), create(client, **asked)

    def record(of: dict[str, Any]) -> dict[str, Any]:
        return dict(client.get(f"/v1/predictions/{of['id']}").json())

    def under_way(of: dict[str, Any]) -> bool:
        return len(record(of).get("output") or []) > 3

    for each in (created, other):
        wait_for(partial(under_way, each), "tokens")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(events, created["urls"]["stream"])
        time.sleep(0.5)
        canceled = client.post(f"/v1/predictions/{created['id']}/cancel").json()
        found = stream.result(PATIENCE)
    assert canceled["status"] == "canceled"
    assert canceled["output"]
    assert found[-1]["event"] == "done"
    assert json.loads(found[-1]["data"]) == {"reason": "canceled"}

    def running() -> int:
        models = client.get("/admin/status").json()["models"]
        (model,) = [model for model in models if model["name"] == LANGUAGE_MODEL]
        return int(model["running"])

    wait_for(lambda: running() == 1, "the slot to be free")
    assert record(other)["status"] == "processing", (
        "the slot was free only because the text had come to its end"
    )
    client.post(f"/v1/predictions/{other['id']}/cancel")


def test_the_metrics_count_tokens(client: httpx.Client) -> None:
    reply = client.post(
        f"/v1/models/{LANGUAGE_MODEL}/predictions",
        json={"input": {"prompt": "Hello!", "max_tokens": 10}},
        headers={"Prefer": "wait"},
    )
    metrics = reply.json()["metrics"]
    assert isinstance(metrics["input_token_count"], int)
    assert isinstance(metrics["output_token_count"], int)
    assert 0 < metrics["output_token_count"] <= 10
    assert 0 < metrics["time_to_first_token"] <= metrics["predict_time"] <= metrics["total_time"]
    assert metrics["tokens_per_second"] > 0


def test_a_reader_that_comes_late_or_comes_back_misses_nothing(client: httpx.Client) -> None:
    created = create(client, prompt="Name three colours.", max_tokens=20, temperature=0)
    live = events(created["urls"]["stream"])
    late = events(created["urls"]["stream"], {"Authorization": f"Bearer {TOKEN}"})
    assert late == live
    again = events(created["urls"]["stream"], {"Last-Event-ID": live[2]["id"]})
    assert again == live[3:]
