"""Signatures of webhooks, by the vectors of the contract, and which events become one."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.prediction import WEBHOOK_EVENTS, Prediction, Status, Webhook
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.webhooks import sender
from appliance.gateway.webhooks.sender import Webhooks
from appliance.store import Store
from tests.support.webhook_vectors import SIGNATURES


@pytest.mark.parametrize(("key", "id", "timestamp", "body", "expected"), SIGNATURES)
def test_signatures_are_those_of_the_contract(
    key: str, id: str, timestamp: int, body: bytes, expected: str
) -> None:
    assert sender.signature(key, id, timestamp, body) == expected
    both = sender.headers([sender.new_key(), key], id, timestamp, body)["webhook-signature"]
    assert both.split(" ")[1] == expected


def test_keys_are_fresh_and_can_be_split_at_their_underscore() -> None:
    keys = {sender.new_key() for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        prefix, secret = key.split("_")
        assert (prefix, len(base64.b64decode(secret))) == ("whsec", 24)


class Sent(Webhooks):
    """Keeps what would be sent."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, FetchGuard(()), "me")
        self.sent: list[tuple[str, Any, str]] = []

    async def _post(self, record: Prediction, id: str) -> str | None:
        self.sent.append((record.status.value, record.output, record.logs))
        return None


def record(*events: str) -> Prediction:
    return Prediction(
        id="p",
        model="a/b",
        version="v",
        owner="me",
        input={},
        created_at=1.0,
        stream_token="t",
        webhook=Webhook("https://example.org", events or WEBHOOK_EVENTS, "http://x"),
    )


async def test_events_about_output_are_joined_and_the_first_comes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "THROTTLE", 0.05)
    sent = Sent(Store(tmp_path / "db"))
    running = record().started(2.0, 0.0, None)
    sent.observe(running)
    for count in range(1, 21):
        running = running.evolve(output=["x"] * count)
        sent.observe(running)
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)
    await sent.close()
    assert sent.sent[0] == ("processing", None, "")
    outputs = [output for _, output, _ in sent.sent[1:]]
    assert len(outputs[0]) < 5
    assert len(outputs[-1]) == 20
    assert 2 <= len(outputs) <= 8


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        (("start",), [("processing", None, "")]),
        (("output",), [("processing", ["a"], "log")]),
        (("logs",), [("processing", ["a"], "log")]),
        (("completed",), []),
    ],
)
async def test_only_what_was_asked_for_is_sent(
    tmp_path: Path, events: tuple[str, ...], seen: list[Any]
) -> None:
    sent = Sent(Store(tmp_path / "db"))
    running = record(*events).started(2.0, 0.0, None)
    sent.observe(running)
    sent.observe(running.evolve(output=["a"], logs="log"))
    await asyncio.sleep(0.02)
    sent.observe(running.evolve(output=["a"], logs="log").finished(Status.SUCCEEDED, 3.0))
    await asyncio.sleep(0.02)
    await sent.close()
    assert sent.sent == seen


async def test_a_prediction_without_a_webhook_is_nothing_to_it(tmp_path: Path) -> None:
    sent = Sent(Store(tmp_path / "db"))
    sent.observe(record().evolve(webhook=None).started(2.0, 0.0, None))
    await asyncio.sleep(0.01)
    assert sent.sent == []
    await sent.close()


async def test_the_end_is_due_from_the_same_transaction_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    await store.open()
    for id, events in (("completed", WEBHOOK_EVENTS), ("not", ("start",))):
        prediction = record(*events).evolve(id=id, stream_token=id)
        await store.create(prediction)
        await store.finish(prediction.finished(Status.CANCELED, 2.0))
    (due,) = await store.due_deliveries(2e10, 10)
    assert (due.prediction, due.attempts) == ("completed", 0)
    assert await store.next_delivery() == due.due_at
    await store.postpone_delivery(due.id, 1, 1e10, "HTTP 500")
    assert await store.due_deliveries(1e9, 10) == []
    (due,) = await store.due_deliveries(2e10, 10)
    assert due.attempts == 1
    await store.end_delivery(due.id)
    assert await store.next_delivery() is None
    await store.close()


async def test_an_old_key_is_used_beside_the_new_one_until_it_expires(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    await store.open()
    await store.add_webhook_key("me", "whsec_old", 100.0, 0.0)
    await store.add_webhook_key("me", "whsec_new", 200.0, 50.0)
    assert await store.webhook_keys("me", 249.0) == ["whsec_new", "whsec_old"]
    assert await store.webhook_keys("me", 250.0) == ["whsec_new"]
    await store.close()
