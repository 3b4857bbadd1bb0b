"""Webhooks to a real receiver: failures, redirects, restarts; signatures checked by the official clients."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret

from tests.support.appliance_process import PATIENCE, ROOT, Appliance, free_port, wait_for
from tests.support.webhook_receiver import Received, Receiver, receiving

pytestmark = pytest.mark.integration

COMMAND = ROOT / ".venv" / "bin" / "appliance"
CONFIG = """
egress:
  allow: [127.0.0.0/8]
models:
  - {name: test/echo, kind: echo}
  - {name: test/stream, kind: echo, options: {stream: true}}
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


def create(client: httpx.Client, webhook: str, model: str = "test/echo", **input: Any) -> str:
    body = {"version": model, "input": input, "webhook": webhook}
    reply = client.post("/v1/predictions", json=body)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def completed(receiver: Receiver, id: str, count: int = 1) -> list[Received]:
    wait_for(lambda: len(receiver.about(id)) >= count, f"{count} deliveries of the end of {id}")
    return receiver.about(id)


def succeeded(client: httpx.Client, id: str) -> None:
    wait_for(lambda: client.get(f"/v1/predictions/{id}").json()["status"] == "succeeded", id)


def outcomes(client: httpx.Client) -> dict[str, int]:
    """What came of attempts to send webhooks, as Prometheus is told."""
    found = re.findall(r'appliance_webhooks_total{outcome="(\w+)"} (\d+)', client.get("/metrics").text)
    return {outcome: int(count) for outcome, count in found}


def test_what_is_sent_is_what_get_shows(
    appliance: Appliance, client: httpx.Client, receiver: Receiver
) -> None:
    id = create(client, f"{receiver.url}/hook?x=1", "test/stream", text="a b c d ", chunk_delay=0.6)
    (end,) = completed(receiver, id)
    assert end.path == "/hook?x=1"
    assert end.headers["content-type"] == "application/json"
    assert end.record == client.get(f"/v1/predictions/{id}").json()
    assert end.record["urls"]["get"] == f"{appliance.url}/v1/predictions/{id}"
    before = [one.record for one in receiver.about(id, terminal=False)[:-1]]
    assert before[0]["status"] == "processing"
    growing = [len(record.get("output") or []) for record in before]
    assert growing == sorted(growing)
    assert 0 < growing[-1] <= 4


def test_every_signature_is_one_that_the_official_clients_accept(
    client: httpx.Client, receiver: Receiver
) -> None:
    key = client.get("/v1/webhooks/default/secret").json()["key"]
    id = create(client, receiver.url, text="größer")
    (end,) = completed(receiver, id)
    Webhooks.validate(
        headers=end.headers, body=end.body.decode(), secret=WebhookSigningSecret(key=key), tolerance=600
    )
    script = f"""
        import {{ validateWebhook }} from "replicate";
        const [id, timestamp, signature, body, secret] = {
        json.dumps(
            [
                end.headers["webhook-id"],
                end.headers["webhook-timestamp"],
                end.headers["webhook-signature"],
                end.body.decode(),
                key,
            ]
        )
    };
        const good = await validateWebhook({{ id, timestamp, signature, body, secret }});
        const bad = await validateWebhook({{ id, timestamp, signature, body: body + " ", secret }});
        console.log(JSON.stringify([good, bad]));
    """
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        cwd=ROOT / ".clients" / "js", capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [True, False]


def test_a_key_can_be_replaced_without_a_gap(
    appliance: Appliance, client: httpx.Client, receiver: Receiver
) -> None:
    def command(*arguments: str) -> str:
        ran = subprocess.run(
            [str(COMMAND), "webhook", *arguments, "--config", str(appliance.config)],
            env=appliance.environment, capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return ran.stdout.strip()

    old = client.get("/v1/webhooks/default/secret").json()["key"]
    assert command("secret") == old
    new = command("rotate")
    assert client.get("/v1/webhooks/default/secret").json()["key"] == new != old
    (end,) = completed(receiver, create(client, receiver.url))
    for key in (old, new):
        Webhooks.validate(headers=end.headers, body=end.body.decode(), secret=WebhookSigningSecret(key=key))


def test_the_end_is_sent_again_until_it_is_taken(client: httpx.Client, receiver: Receiver) -> None:
    before = outcomes(client)
    failing = iter([500, 404, 302])
    receiver.answer = lambda one: next(failing, 200) if "completed_at" in one.record else 200
    attempts = completed(receiver, create(client, f"{receiver.url}/hook"), 4)
    assert len({one.headers["webhook-id"] for one in attempts}) == 1
    assert len({one.body for one in attempts}) == 1
    assert {one.path for one in attempts} == {"/hook"}  # a redirect is not followed
    times = [int(one.headers["webhook-timestamp"]) for one in attempts]
    assert times == sorted(times)
    assert times[-1] - times[0] >= 5
    wait_for(lambda: outcomes(client)["delivered"] > before["delivered"], "the delivery to be counted")
    assert outcomes(client)["retried"] == before["retried"] + 3


def test_other_events_are_sent_once_and_failure_tells_of_itself(
    client: httpx.Client, receiver: Receiver
) -> None:
    receiver.answer = lambda one: 200 if "completed_at" in one.record else 500
    id = create(client, receiver.url, fail="out of ideas")
    (end,) = completed(receiver, id)
    assert (end.record["status"], end.record["error"]) == ("failed", "out of ideas")
    assert len(receiver.about(id, terminal=False)) == 2


def test_nothing_is_lost_when_the_gateway_is_killed_and_the_receiver_is_away(appliance: Appliance) -> None:
    port = free_port()
    with appliance.client() as client:
        hook = f"http://127.0.0.1:{port}/"
        done = [create(client, hook, text=str(number)) for number in range(10)]
        for id in done:
            succeeded(client, id)
        under_way = [create(client, hook, text=str(number), delay=1.5) for number in range(10)]
    appliance.kill_gateway()
    wait_for(appliance.answers, "the next gateway")
    with receiving(port) as receiver:
        for id in (*done, *under_way):
            *_, end = completed(receiver, id)
            assert end.record["status"] == "succeeded"


def test_a_private_receiver_is_refused_where_it_is_not_allowed(client: httpx.Client) -> None:
    body = {"version": "test/echo", "input": {}, "webhook": "http://10.0.0.1/"}
    reply = client.post("/v1/predictions", json=body)
    assert reply.status_code == 422
    assert "egress.allow" in reply.json()["detail"]
