"""Rows W: webhooks, received by a real server and checked by the clients' own validators."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.webhook import Webhooks, WebhookSigningSecret

from appliance.gateway.webhooks.sender import signature
from tests.e2e.clients import node
from tests.e2e.conftest import command
from tests.e2e.test_conformance_predictions import create, ended
from tests.support.appliance_process import Appliance, wait_for
from tests.support.webhook_receiver import Received, Receiver
from tests.support.webhook_vectors import SIGNATURES

pytestmark = pytest.mark.e2e


def hooked(
    api: httpx.Client, receiver: Receiver, *events: str, model: str = "test/stream", **input: Any
) -> str:
    body: dict[str, Any] = {"version": model, "input": input, "webhook": f"{receiver.url}/hook"}
    if events:
        body["webhook_events_filter"] = list(events)
    reply = api.post("/v1/predictions", json=body)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def last(receiver: Receiver, id: str) -> Received:
    wait_for(lambda: receiver.about(id), "the end")
    return receiver.about(id)[-1]


def valid(one: Received, key: str) -> bool:
    """What Python 1.0 says of the signature."""
    try:
        Webhooks.validate(headers=one.headers, body=one.body.decode(), secret=WebhookSigningSecret(key=key))
    except Exception:  # noqa: BLE001 - it raises several
        return False
    return True


def test_w1_w3_w4_events(api: httpx.Client, receiver: Receiver) -> None:
    id = hooked(api, receiver, text="a b c d e f g h ", chunk_delay=0.6, print="hello")
    end = last(receiver, id)
    assert end.record == api.get(f"/v1/predictions/{id}").json()
    everything = [one.record for one in receiver.about(id, terminal=False)]
    assert everything[0]["status"] == "processing"
    partial = [record["output"] for record in everything[:-1] if record.get("output")]
    assert len(partial) >= 2
    assert any(record["logs"] for record in everything[:-1])
    assert len(partial) <= 2 * end.record["metrics"]["predict_time"] + 2, "two a second at the most"
    assert all(len(a) <= len(b) for a, b in itertools.pairwise(partial))


def test_w2_w13_only_the_end(api: httpx.Client, receiver: Receiver) -> None:
    id = hooked(api, receiver, "completed", text="a b c ", chunk_delay=0.1)
    failed = hooked(api, receiver, "completed", text="a ", fail="no")
    canceled = hooked(api, receiver, "completed", text="a b c d ", chunk_delay=600)
    wait_for(lambda: api.get(f"/v1/predictions/{canceled}").json().get("output"), "output")
    api.post(f"/v1/predictions/{canceled}/cancel")
    assert [last(receiver, each).record["status"] for each in (id, failed, canceled)] == [
        "succeeded",
        "failed",
        "canceled",
    ]
    time.sleep(1)
    assert all(len(receiver.about(each, terminal=False)) == 1 for each in (id, failed, canceled))


def test_w5_the_official_validators(
    api: httpx.Client, official: Client, receiver: Receiver, appliance: Appliance
) -> None:
    end = last(receiver, hooked(api, receiver, text="x"))
    key = official.webhooks.default.secret().key
    assert valid(end, key)
    changed = end._replace(body=end.body.replace(b"succeeded", b"failed"))
    assert not valid(changed, key)
    script = f"""
      import {{ validateWebhook }} from "replicate";
      const secret = (await replicate.webhooks.default.secret.get()).key;
      const headers = {json.dumps({k: v for k, v in end.headers.items() if k.startswith("webhook-")})};
      const body = {json.dumps(end.body.decode())};
      const request = new Request("http://x", {{ method: "POST", headers, body }});
      console.log(JSON.stringify(await validateWebhook(request, secret)));
    """
    assert node(appliance, script) is True


def test_w6_the_vectors_of_the_contract() -> None:
    for key, id, at, body, expected in SIGNATURES:
        assert signature(key, id, at, body) == expected


def test_w7_w8_the_end_is_sent_again_and_nothing_else(api: httpx.Client, receiver: Receiver) -> None:
    def busy(one: Received) -> int:
        return 200 if len(receiver.about(one.record["id"])) > 2 else 500

    receiver.answer = busy
    id = hooked(api, receiver, "output", "completed", text="a b ", chunk_delay=0.1)
    wait_for(lambda: len(receiver.about(id)) == 3, "the third attempt")
    attempts = receiver.about(id)
    assert len({one.headers["webhook-id"] for one in attempts}) == 1
    times = [int(one.headers["webhook-timestamp"]) for one in attempts]
    assert times == sorted(times)
    assert times[0] < times[2]
    outputs = [one for one in receiver.about(id, terminal=False) if one not in attempts]
    assert len({one.headers["webhook-id"] for one in outputs}) == len(outputs)
    time.sleep(1.5)
    assert len(receiver.about(id)) == 3


def test_w9_a_redirect_is_not_followed(api: httpx.Client, receiver: Receiver) -> None:
    receiver.answer = lambda _: 302
    id = hooked(api, receiver, "completed", text="x")
    wait_for(lambda: len(receiver.about(id)) >= 2, "a further attempt")
    assert {one.path for one in receiver.received} == {"/hook"}
    receiver.answer = lambda _: 200
    wait_for(lambda: len(receiver.about(id)) >= 3, "the delivery")


def test_w10_two_keys_while_one_takes_over(
    api: httpx.Client, official: Client, receiver: Receiver, appliance: Appliance
) -> None:
    before = official.webhooks.default.secret().key
    after = command(appliance, "webhook", "rotate").strip()
    assert official.webhooks.default.secret().key == after != before
    end = last(receiver, hooked(api, receiver, text="x"))
    assert len(end.headers["webhook-signature"].split()) == 2
    assert valid(end, before)
    assert valid(end, after)


def test_w11_what_cannot_be(api: httpx.Client) -> None:
    for wrong, field in (
        ({"webhook": "ftp://x/y"}, "webhook"),
        ({"webhook": "nonsense"}, "webhook"),
        ({"webhook": "http://10.0.0.1/x"}, "webhook"),
        ({"webhook": "https://x.org", "webhook_events_filter": ["end"]}, "webhook_events_filter.0"),
    ):
        body = {"version": "appliance/echo", "input": {}} | wrong
        reply = api.post("/v1/predictions", json=body)
        assert (reply.status_code, reply.json()["invalid_fields"][0]["field"]) == (422, field)


def test_a_receiver_that_is_away_harms_nothing(api: httpx.Client) -> None:
    body = {"version": "appliance/echo", "input": {"text": "x"}, "webhook": "http://127.0.0.1:9/x"}
    record = api.post("/v1/predictions", json=body).json()
    assert ended(api, record)["status"] == "succeeded"
    assert ended(api, create(api, text="next"))["output"] == "next"
