"""A disk without space: callers get an error, what was accepted waits, and nothing is sent twice or lost."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import DiskFull, LoadFailed, PredictionFailed, WorkerLost
from appliance.domain.prediction import Prediction, Status, Webhook
from appliance.gateway.engine import loads, records
from appliance.gateway.engine.records import finalized
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.file_store import Incoming
from appliance.gateway.webhooks import sender as webhooks
from appliance.gateway.webhooks.sender import Webhooks
from appliance.machine import disk
from appliance.runners.base import LoadSpec
from appliance.store import Store
from appliance.worker.process import capture
from tests.support.api_client import Api
from tests.support.engine_bench import Bench
from tests.support.local_cluster import LocalCluster
from tests.unit.gateway.webhooks.test_sender import Receiver, listening

FULL = Path("/dev/full")  # the kernel's own
TOLD = "The disk of the appliance is full: free some space on it, then try again"


async def fill(store: Store, *, full: bool) -> None:
    """Have SQLite itself find no space for a further page, or as many as it likes."""

    def action(connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA max_page_count = {1 if full else 2**31}")  # never less than there are

    await store.write(action)


async def test_an_upload_that_finds_no_space_is_refused_and_leaves_nothing(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = bench.files.incoming

    async def full(expected: int) -> Incoming:
        made = await incoming(expected)
        made._file.close()
        made._file = FULL.open("wb")  # noqa: ASYNC230 - a device
        return made

    monkeypatch.setattr(bench.files, "incoming", full)
    reply = await api.post("/v1/files", files={"content": ("a.txt", b"x" * 100_000)})
    assert (reply.status_code, reply.json()["detail"]) == (507, TOLD)
    assert list((bench.files.folder / "uploads").iterdir()) == []


async def test_a_prediction_that_cannot_be_stored_is_refused_and_can_be_sent_again(
    api: Api, bench: Bench
) -> None:
    body = {"version": "test/echo", "input": {"text": "x" * 50_000}}
    await fill(bench.store, full=True)
    reply = await api.post("/v1/predictions", json=body)
    assert (reply.status_code, reply.json()["detail"]) == (507, TOLD)
    await fill(bench.store, full=False)
    reply = await api.post("/v1/predictions", json=body)
    assert (await api.ended(reply.json()))["status"] == "succeeded"


class NoHosts(LocalCluster):
    """No worker process starts while the disk is full, as none does that cannot mark itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error
        self.loads = 0

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return await super().load(spec)


@pytest.mark.parametrize("error", [WorkerLost("exited with code 1"), LoadFailed("no space left on device")])
async def test_what_waits_for_a_load_waits_for_space_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(loads, "RETRY_STORE", 0.01)
    checks, space = 0, asyncio.Event()

    def full(_: Path) -> bool:
        nonlocal checks
        checks += 1
        return not space.is_set()

    monkeypatch.setattr(disk, "full", full)
    bench = Bench(tmp_path)
    bench.cluster = cluster = NoHosts(error)
    await bench.start()
    prediction = await bench.submit(text="x")
    while checks < 10:
        await asyncio.sleep(0.01)
    assert cluster.loads == 1  # none is started before there is space
    assert (await bench.engine.get(prediction.id, "me")).status is Status.STARTING
    cluster.error = None
    space.set()
    assert (await bench.ended(prediction)).output == "x"
    await bench.stop()
    await cluster.close()


def test_a_disk_is_full_where_a_little_finds_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not disk.full(tmp_path)
    with FULL.open("wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        assert disk.full(tmp_path)


async def test_a_training_waits_for_the_space_of_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RETRY_STORE", 0.0)
    errors: list[Exception] = [DiskFull("full"), OSError(28, "No space left on device"), DiskFull("full")]
    record = Prediction(
        id="p", model="a/b", version="v", owner="me", input={}, created_at=1.0, stream_token="t"
    ).started(2.0, 0.0, None)

    async def finalize(record: Prediction) -> Prediction:
        if errors:
            raise errors.pop()
        return record.evolve(output="made")

    assert (await finalized(finalize, record)).output == "made"
    errors = [PredictionFailed("its destination is gone")]
    ended = await finalized(finalize, record)
    assert (ended.status, ended.error) == (
        Status.FAILED,
        "the training's new version could not be created: its destination is gone",
    )


def test_a_log_without_space_fails_no_model() -> None:
    descriptor = os.open(FULL, os.O_WRONLY)
    log = capture._unclosed(descriptor)
    print("a line", file=log, flush=True)
    os.close(descriptor)


# Everything at once


class Notifying(Bench):
    """An engine whose predictions' webhooks are sent."""

    sender: Webhooks

    def _observe(self, record: Prediction) -> None:
        super()._observe(record)
        self.sender.observe(record)

    async def start(self) -> Bench:
        store = Store(self.folder / "appliance.db", durability="normal")
        await store.open()
        self.sender = Webhooks(store, FetchGuard(("127.0.0.0/8",)), "me")
        await super().start()
        self.sender._store = self.store
        await store.close()
        await self.sender.start()
        return self

    async def stop(self) -> None:
        await self.engine.close()
        await self.sender.close()
        await super().stop()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with listening(receiver.serve) as receiver.url:
        yield receiver


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + 60  # for hangs
    while not await true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_each_of_200_predictions_sends_one_webhook_although_the_disk_is_full_meanwhile(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (records, webhooks):
        monkeypatch.setattr(module, "RETRY_STORE", 0.05)
    bench = Notifying(tmp_path, queue=1000)
    await bench.start()
    webhook = Webhook(receiver.url, ("completed",), "http://x")
    ids: list[str] = []
    refused = 0

    async def create(number: int) -> None:
        nonlocal refused
        input: dict[str, Any] = {"text": f"{number} " * 500, "delay": 0.01}
        while True:
            try:
                ids.append(
                    (
                        await bench.engine.submit(
                            bench.echo,
                            input,
                            owner="me",
                            webhook=webhook,
                            parent=None,
                            token=None,
                            trace=None,
                        )
                    ).id
                )
                return
            except DiskFull:
                refused += 1
                await asyncio.sleep(0.05)

    async def sent(count: int) -> bool:
        return len(receiver.came) >= count

    creating = [asyncio.ensure_future(create(number)) for number in range(100)]
    await until(lambda: sent(20), "the first webhooks")
    await fill(bench.store, full=True)
    creating += [asyncio.ensure_future(create(number)) for number in range(100, 200)]

    async def hindered() -> bool:
        return refused > 100

    await until(hindered, "refusals")
    await fill(bench.store, full=False)
    await asyncio.gather(*creating)
    await until(lambda: sent(200), "all webhooks")

    async def recorded() -> bool:
        return await bench.store.next_delivery() is None

    await until(recorded, "the end of all deliveries")
    assert receiver.came == dict.fromkeys(ids, 1)
    assert bench.sender.outcomes == {"delivered": 200, "retried": 0, "given_up": 0}
    await bench.stop()
    await bench.cluster.close()
