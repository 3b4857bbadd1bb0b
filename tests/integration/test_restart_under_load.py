"""`kill -9` of everything under load: nothing that was accepted is lost, nothing is told wrong."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, Appliance, wait_for
from tests.support.usage_totals import all_predictions, is_quiet, summed, used
from tests.support.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.integration

CONFIG = """
egress:
  allow: [127.0.0.0/8]
limits:
  attempts: 3
logging: {format: json}
models:
  - {name: test/echo, kind: echo}
  - {name: test/stream, kind: echo, options: {stream: true}}
  - {name: test/files, kind: echo, options: {files: true}}
"""
OVER = {"succeeded", "failed", "canceled", "aborted"}


class Callers:
    """Threads that ask for predictions and upload files, and note what was accepted."""

    def __init__(self, appliance: Appliance, hook: str) -> None:
        self._appliance = appliance
        self._hook = hook
        self._stop = threading.Event()
        self.predictions: list[str] = []
        self.uploads: dict[str, str] = {}  # id -> SHA-256
        self._threads = [threading.Thread(target=self._predict, args=(number,)) for number in range(4)]
        self._threads += [threading.Thread(target=self._upload, args=(number,)) for number in range(2)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _predict(self, caller: int) -> None:
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("test/echo", {"delay": 0.2}),
            ("test/stream", {"text": "a b c d e f ", "chunk_delay": 0.1}),
            ("test/files", {"file": "data:text/plain,content", "delay": 0.1}),
            ("test/echo", {"text": "at once"}),
        ]
        with self._appliance.client() as client:
            number = caller
            while not self._stop.is_set():
                model, input = kinds[number % len(kinds)]
                body = {"version": model, "input": input, "webhook": self._hook}
                body["webhook_events_filter"] = ["completed"]
                try:
                    reply = client.post("/v1/predictions", json=body)
                except httpx.HTTPError:
                    return
                if reply.status_code == 201:
                    self.predictions.append(reply.json()["id"])
                number += 1
                time.sleep(0.02)

    def _upload(self, caller: int) -> None:
        with self._appliance.client() as client:
            number = 0
            while not self._stop.is_set():
                content = f"{caller} {number} ".encode() * 20_000
                try:
                    reply = client.post("/v1/files", files={"content": content})
                except httpx.HTTPError:
                    return
                if reply.status_code == 201:
                    self.uploads[reply.json()["id"]] = hashlib.sha256(content).hexdigest()
                number += 1
                time.sleep(0.02)


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG)
    running = Appliance(tmp_path / "home", config)
    yield running
    if running.process is not None and running.process.poll() is None:  # the test has failed
        running.kill()


def test_nothing_accepted_is_lost(appliance: Appliance) -> None:
    with receiving() as receiver:
        receiver.answer = lambda one: (
            500 if hash(one.record["id"]) % 3 == 0 and time.monotonic() < end else 200
        )
        end = time.monotonic() + 20  # the receiver refuses a part of it for a while
        appliance.start()
        callers = Callers(appliance, f"{receiver.url}/hook")
        callers.start()
        with appliance.client() as client:
            wait_for(partial(enough, callers, client), "enough to lose")
        appliance.kill()
        callers.stop()
        accepted = len(callers.predictions)
        appliance.start()
        with appliance.client() as client:
            records = [ended(client, id) for id in callers.predictions]
            statuses = {status: sum(record["status"] == status for record in records) for status in OVER}
            check_files(client, appliance, callers)
            check_outputs(client, records)
            told = check_webhooks(receiver, records)
            check_usage(client)
        appliance.stop()
    assert appliance.processes() == []
    check_log(appliance)
    print(f"accepted {accepted} predictions and {len(callers.uploads)} files; ended {statuses}; told {told}")
    assert sum(statuses.values()) == accepted
    assert statuses["canceled"] == statuses["aborted"] == 0
    interrupted = [record for record in records if record["status"] == "failed"]
    assert all("interrupted" in record["error"] for record in interrupted)
    assert all(record["output"] for record in interrupted)  # those without run again
    assert statuses["succeeded"] > accepted / 2


def enough(callers: Callers, client: httpx.Client) -> bool:
    """Whether much was accepted, and some of it is over already."""
    if len(callers.predictions) < 200 or len(callers.uploads) < 20:
        return False
    return client.get(f"/v1/predictions/{callers.predictions[20]}").json()["status"] in OVER


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        reply = client.get(f"/v1/predictions/{id}")
        assert reply.status_code == 200, f"{id} was accepted and is gone"
        record: dict[str, Any] = reply.json()
        return record if record["status"] in OVER else None

    found: dict[str, Any] = wait_for(over, f"the end of {id}")
    return found


def check_files(client: httpx.Client, appliance: Appliance, callers: Callers) -> None:
    for id, sha256 in callers.uploads.items():
        file = client.get(f"/v1/files/{id}").json()
        assert file["checksums"]["sha256"] == sha256
        assert hashlib.sha256((appliance.home / "files" / "uploads" / id).read_bytes()).hexdigest() == sha256
    known = {file.name for file in (appliance.home / "files" / "uploads").iterdir()}
    listed: set[str] = set()
    address = "/v1/files"
    while address:
        page = client.get(address).json()
        listed |= {file["id"] for file in page["results"]}
        address = page["next"]
    assert known == listed >= set(callers.uploads)  # and nothing half is left over


def check_outputs(client: httpx.Client, records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["status"] != "succeeded":
            continue
        match record["model"]:
            case "test/stream":
                assert "".join(record["output"]) == "a b c d e f "
            case "test/files":
                (address,) = record["output"]
                assert client.get(address).text == "content"


def check_usage(client: httpx.Client) -> None:
    """Each prediction counts once, however often it ran; those too whose acceptance nobody heard of."""
    wait_for(lambda: is_quiet(client), "all predictions to be over")
    keys = ("model", "token", "hardware")
    assert used(client, *keys) == summed(all_predictions(client), *keys)


def check_log(appliance: Appliance) -> None:
    """Each line is an object, which names the model that it is about."""
    lines = (appliance.home / "logs" / "appliance.log").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["model"] for record in records if "is ready" in record["message"]} >= {"test/echo"}


def check_webhooks(receiver: Receiver, records: list[dict[str, Any]]) -> int:
    """Each end was told, at least once, and told as it is."""
    for record in records:
        wait_for(partial(receiver.about, record["id"]), f"the webhook of {record['id']}")
        for one in receiver.about(record["id"]):
            assert one.record == record
    return len(receiver.received)
