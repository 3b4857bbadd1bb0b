"""Last events on their way to real receivers: once each, whatever the store or other receivers do."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import StoreError
from appliance.domain.prediction import Prediction, Status, Webhook, new_id
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.webhooks import sender as webhooks
from appliance.gateway.webhooks.sender import Webhooks
from appliance.store import Delivery, Store
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench, refusal


class FullDisk:
    """Refuses one kind of write until there is space again."""

    def __init__(self, store: Store, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        self.full = True
        self._write = getattr(store, write)
        monkeypatch.setattr(webhooks, "RETRY_STORE", 0.02)
        monkeypatch.setattr(store, write, self._written)

    def _written(self, *arguments: Any) -> asyncio.Future[None]:
        if self.full:
            self.refused += 1
            return refusal(StoreError("the disk is full: free some space"))
        written: asyncio.Future[None] = self._write(*arguments)
        return written

    async def refuses(self, count: int) -> None:
        while self.refused < count:
            await asyncio.sleep(0.01)


class Receiver:
    """Counts what comes, by prediction; answers 200 by default."""

    def __init__(self) -> None:
        self.url = ""
        self.came: Counter[str] = Counter()
        self.headers: dict[str, str] = {}  # of the last one
        self.status = 200

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.headers = {name.lower(): value for name, value in lines}
        body = await reader.readexactly(int(self.headers["content-length"]))
        self.came[json.loads(body)["id"]] += 1
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % self.status)
        await writer.drain()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with header lines, and never an end of them."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
    address: str = "127.0.0.1",
) -> AsyncIterator[str]:
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(lambda _: writer.close())

    server = await asyncio.start_server(accept, address, 0)
    try:
        yield f"http://{address}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with listening(receiver.serve) as receiver.url:
        yield receiver


@pytest.fixture
async def sender(store: Store) -> AsyncIterator[Webhooks]:
    sender = Webhooks(store, FetchGuard(("127.0.0.0/8",)), "me")
    await sender.start()
    yield sender
    await sender.close()


async def finished(store: Store, sender: Webhooks, url: str, owner: str = "me") -> Prediction:
    """A prediction whose end is stored, and to be sent to ``url``."""
    record = Prediction(
        id=new_id(),
        model="a/b",
        version="v",
        owner=owner,
        input={},
        created_at=1.0,
        stream_token=new_id(),
        webhook=Webhook(url, ("completed",), "http://x"),
    )
    await store.create(record)
    record = record.finished(Status.CANCELED, 2.0)
    await store.finish(record)
    sender.observe(record)
    return record


async def over(store: Store, record: Prediction) -> Delivery:
    """Its delivery, once that is over."""
    deadline = time.monotonic() + 20  # for hangs
    while True:
        (delivery,) = await store.deliveries(record.id)
        if delivery.ended_at is not None:
            return delivery
        assert time.monotonic() < deadline, delivery
        await asyncio.sleep(0.01)


async def test_a_delivery_that_cannot_be_recorded_is_not_sent_again(
    store: Store, sender: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(store, "end_delivery", monkeypatch)
    record = await finished(store, sender, receiver.url)
    await disk.refuses(20)
    assert receiver.came == {record.id: 1}
    disk.full = False
    assert (await over(store, record)).problem is None
    assert receiver.came == {record.id: 1}


async def test_an_attempt_that_cannot_be_recorded_is_not_made_again_before_it_is(
    store: Store, sender: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "RETRIES", (0.01,))
    receiver.status = 500
    disk = FullDisk(store, "postpone_delivery", monkeypatch)
    record = await finished(store, sender, receiver.url)
    await disk.refuses(20)
    assert receiver.came == {record.id: 1}
    disk.full = False
    assert (await over(store, record)).problem == "HTTP 500"
    assert receiver.came == {record.id: 2}


async def test_due_webhooks_are_read_again_after_an_error(
    store: Store, sender: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "RETRY_STORE", 0.02)
    due, refused = store.due_deliveries, asyncio.Event()

    async def refuse(now: float, each: int) -> list[Delivery]:
        refused.set()
        raise StoreError("it cannot be opened: check the limit of open files")

    monkeypatch.setattr(store, "due_deliveries", refuse)
    record = await finished(store, sender, receiver.url)
    await refused.wait()
    monkeypatch.setattr(store, "due_deliveries", due)
    await over(store, record)
    assert receiver.came == {record.id: 1}


async def test_a_read_that_is_older_than_the_end_of_a_delivery_repeats_nothing(
    store: Store, sender: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    due, ended, held = store.due_deliveries, asyncio.Event(), asyncio.Event()
    records = [await finished(store, sender, receiver.url)]

    async def late(now: float, each: int) -> list[Delivery]:
        """What was due before the delivery under way ended, told after that."""
        found = await due(now, each)
        if found and receiver.came:
            held.set()
            await ended.wait()
        return found

    end = store.end_delivery

    def ending(id: str, problem: str | None = None) -> asyncio.Future[None]:
        async def after() -> None:
            sender.observe(records[0])  # another prediction has ended meanwhile, so what is due is looked up
            await held.wait()
            await end(id, problem)
            asyncio.get_running_loop().call_later(0.05, ended.set)

        return asyncio.ensure_future(after())

    monkeypatch.setattr(store, "due_deliveries", late)
    monkeypatch.setattr(store, "end_delivery", ending)
    await over(store, records[0])
    await ended.wait()
    await asyncio.sleep(0.2)  # a second one would come now
    assert receiver.came == {records[0].id: 1}


async def test_the_events_of_a_prediction_arrive_in_order(
    store: Store, sender: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one waits for the first, whose receiver takes long; the one between is left out."""
    monkeypatch.setattr(webhooks, "THROTTLE", 0.01)
    arrived: list[str] = []
    first = asyncio.Event()
    others = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        if not first.is_set():
            first.set()
            await others.wait()
        arrived.append(f"{body['status']} {body.get('output')}")
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(serve) as url:
        record = Prediction(
            id=new_id(),
            model="a/b",
            version="v",
            owner="me",
            input={},
            created_at=1.0,
            stream_token=new_id(),
            webhook=Webhook(url, ("start", "output", "completed"), "http://x"),
        )
        await store.create(record)
        started = record.started(2.0, 0.0, None)
        await store.claim(started)
        sender.observe(started)
        await first.wait()
        sender.observe(started.evolve(output="half", n=1))
        for _ in range(100):
            await asyncio.sleep(0.001)
        done = started.evolve(output="whole").finished(Status.SUCCEEDED, 3.0)
        await store.finish(done)
        sender.observe(done)
        for _ in range(100):  # whatever could be sent now is sent
            await asyncio.sleep(0.001)
        others.set()
        async with asyncio.timeout(60):
            while "succeeded whole" not in arrived:
                await asyncio.sleep(0.005)
    assert arrived == ["processing None", "succeeded whole"]


async def test_an_attempt_has_one_limit_however_its_answer_drips(
    store: Store, sender: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.2)
    monkeypatch.setattr(webhooks, "RETRIES", ())
    async with listening(drip) as url:
        delivery = await over(store, await finished(store, sender, url))
    assert delivery.problem == "no answer within 0.2 s"


@pytest.mark.parametrize("owner", ["you", "me"])
async def test_receivers_that_hold_their_slots_keep_no_others_waiting(
    store: Store, sender: Webhooks, receiver: Receiver, owner: str
) -> None:
    async with listening(drip, "127.0.0.2") as url:
        for _ in range(2 * webhooks.AT_ONCE):
            await finished(store, sender, url)
        record = await finished(store, sender, receiver.url, owner)
        await over(store, record)
    assert receiver.came == {record.id: 1}


async def test_a_hostname_that_no_resolver_takes_fails_like_any_other(
    store: Store, sender: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "RETRIES", ())
    delivery = await over(store, await finished(store, sender, f"http://{'a' * 70}.example/"))
    assert delivery.problem is not None
    assert delivery.attempts == 0


async def test_a_prediction_that_cannot_be_read_is_looked_at_later_and_no_attempt_counts(
    store: Store, sender: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "RETRIES", (0.02,))
    get, failing = store.get, iter(range(5))

    async def unreadable(id: str) -> Prediction | None:
        if next(failing, None) is not None:
            raise StoreError("it cannot be opened")
        return await get(id)

    monkeypatch.setattr(store, "get", unreadable)
    record = await finished(store, sender, receiver.url)
    assert (await over(store, record)).attempts == 0
    assert receiver.came == {record.id: 1}


async def test_each_account_s_webhooks_are_signed_with_a_key_of_its_own(
    store: Store, sender: Webhooks, receiver: Receiver
) -> None:
    used = {}
    for owner in ("me", "you"):
        await over(store, await finished(store, sender, receiver.url, owner))
        (used[owner],) = await webhooks.keys(store, owner, time.time())
        signed, _, signature = receiver.headers["webhook-signature"].partition(",")
        assert signed == "v1"
        assert len(base64.b64decode(signature)) == 32
    assert used["me"] != used["you"]


async def test_the_account_of_models_yaml_keeps_the_key_that_was_everyone_s(
    store: Store, path: Path, receiver: Receiver
) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO webhook_keys (key, created_at) VALUES ('whsec_b2xk', 1.0)")
    connection.close()
    sender = Webhooks(store, FetchGuard(()), "me")
    await sender.start()
    await sender.close()
    assert await webhooks.keys(store, "me", 2.0) == ["whsec_b2xk"]
    (other,) = await webhooks.keys(store, "you", 2.0)
    assert other != "whsec_b2xk"
    assert await webhooks.keys(store, "you", 3.0) == [other]


async def test_a_first_key_that_two_ask_for_at_once_is_one(store: Store) -> None:
    first, second = await asyncio.gather(*(webhooks.keys(store, "me", time.time()) for _ in range(2)))
    assert first == second


async def test_a_caller_gets_and_replaces_the_key_of_its_own_account(api: Api, bench: Bench) -> None:
    mine, theirs = [
        (await api.get("/v1/webhooks/default/secret", headers={"Authorization": f"Bearer {secret}"})).json()
        for secret in (SECRET, "other")
    ]
    assert mine != theirs
    made = (await api.post("/admin/webhooks/secret", json={"keep": 60})).json()["key"]
    now = time.time()
    assert await webhooks.keys(bench.store, "me", now) == [made, mine["key"]]
    assert await webhooks.keys(bench.store, "you", now) == [theirs["key"]]
