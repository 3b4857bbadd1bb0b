"""What is removed after a while, and what stays."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.config import FilesConfig
from appliance.domain.conversation import ConversationContent, ConversationSettings, new_conversation
from appliance.domain.prediction import Prediction, Status, Webhook
from appliance.domain.retention import RetentionRules
from appliance.gateway.files import prediction_retention
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.prediction_retention import Retention
from appliance.protocols import serializers
from appliance.store import Position, Store, expired
from appliance.store.database import SHRINK_PAGES, checkpoint, connect_reader


def prediction(id: str, created_at: float, model: str = "a/b", owner: str = "me") -> Prediction:
    return Prediction(
        id=id,
        model=model,
        version="v",
        owner=owner,
        input={"prompt": "secret"},
        created_at=created_at,
        stream_token=id,
    )


def files_of(store: Store, folder: Path) -> FileStore:
    return FileStore(store.files, folder / "files", FilesConfig())


async def ended(store: Store, id: str, at: float, text: str = "answer", **more: Any) -> Prediction:
    webhook = more.pop("webhook", None)
    created = prediction(id, at, **more).evolve(webhook=webhook)
    started = created.started(at, 0.0, None)
    record = started.evolve(output=[text], logs="log").finished(Status.FAILED, at, "it broke")
    await store.create(created)
    await store.claim(started)
    await store.finish(record)
    return record


async def test_data_goes_and_the_record_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    old, young = await ended(store, "old", 100.0), await ended(store, "young", 200.0)
    await store.create(prediction("waiting", 50.0))
    assert (await store.remove_data(150.0, 10)).ids == ["old"]
    assert (await store.remove_data(150.0, 10)).ids == []
    found = await store.get("old")
    assert found == old.evolve(input={}, output=None, logs="", data_removed=True)
    assert found is not None
    shown = serializers.prediction(found, "http://x")
    assert (shown.data_removed, shown.input, shown.output, shown.error) == (
        True,
        {},
        None,
        "it broke",
    )
    assert await store.get("young") == young
    assert (await store.run_counts()) == {"a/b": 3}
    await store.close()


async def with_long_inputs(file: Path) -> Store:
    """Return a database with 4 MB of inputs of old predictions."""
    store = Store(file, durability="normal")
    await store.open()
    for number in range(20):
        await ended(store, f"p{number}", 100.0, "x" * 200_000)
    return store


async def test_space_is_given_back_to_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "db"
    store = await with_long_inputs(file)
    await store.close()
    full = file.stat().st_size
    await store.open()
    assert len((await store.remove_data(150.0, 100)).ids) == 20
    assert await store.compact()
    await store.close()
    assert file.stat().st_size < full / 2


async def test_it_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_retention, "BATCH", 2)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    for number in range(5):
        await ended(store, f"p{number}", 100.0)
    removing = Retention(store, files_of(store, tmp_path), RetentionRules(60.0))
    removing.start()
    deadline = time.monotonic() + 60
    while not all(record.data_removed for record in await store.list("me")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    await removing.close()
    await store.close()


async def test_without_a_time_nothing_is_ever_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    await ended(store, "old", 100.0)
    keeping = Retention(store, files_of(store, tmp_path), RetentionRules())
    keeping.start()
    await asyncio.sleep(0.02)
    await keeping.close()
    (record,) = await store.list("me")
    assert not record.data_removed
    await store.close()


async def test_conversations_that_have_not_changed_go_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_retention, "BATCH", 2)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    content = ConversationContent(settings=ConversationSettings(), messages=[], leaf=None)
    for _ in range(5):
        await store.conversations.add(new_conversation("me", "old", "a/b", content, 100.0))
    young = new_conversation("me", "young", "a/b", content, time.time())
    await store.conversations.add(young)
    keeping = Retention(store, files_of(store, tmp_path), RetentionRules())
    keeping.start()
    await asyncio.sleep(0.02)
    assert len(await store.conversations.list("me")) == 6
    keeping.change(RetentionRules(3600.0), None)
    deadline = time.monotonic() + 60
    while len(found := await store.conversations.list("me")) > 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert [each.id for each in found] == [young.id]
    await keeping.close()
    await store.close()


async def until_removed(store: Store, ids: set[str]) -> None:
    """Wait until exactly these predictions of all owners have no data."""
    deadline = time.monotonic() + 60
    while (found := {each.id for each in await store.list(None) if each.data_removed}) != ids:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.005)


async def test_models_and_accounts_have_times_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_retention, "BATCH", 3)
    monkeypatch.setattr(expired, "SCANNED", 4)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    now = time.time()
    for number in range(20):
        age = 100.0 * number + 50
        await ended(store, f"plain{number}", now - age)
        await ended(store, f"short{number}", now - age, model="short/model")
        await ended(store, f"ada{number}", now - age, owner="ada")
    rules = RetentionRules(1500.0, {"short/*": 500.0}, {"ada": 0.0})
    removing = Retention(store, files_of(store, tmp_path), rules)
    removing.start()
    expected = {f"plain{number}" for number in range(15, 20)} | {f"short{number}" for number in range(5, 20)}
    await until_removed(store, expected | {f"ada{number}" for number in range(20)})
    removing.change(RetentionRules(1500.0), None)
    removing.change(RetentionRules(1500.0, {"a/b": 1000.0}, {"me": 1400.0}), None)
    expected |= {f"plain{number}" for number in range(10, 15)}
    await until_removed(store, expected | {f"ada{number}" for number in range(20)})
    await removing.close()
    await store.close()


async def test_everything_is_kept_for_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the response can be sent, and the client can fetch output files."""
    assert prediction_retention._KEPT == 5.0
    monkeypatch.setattr(prediction_retention, "_KEPT", 3600.0)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    content = ConversationContent(settings=ConversationSettings(), messages=[], leaf=None)
    young = new_conversation("me", "young", "a/b", content, time.time() - 60)
    for conversation in (young, new_conversation("me", "old", "a/b", content, time.time() - 7200)):
        await store.conversations.add(conversation)
    await ended(store, "young", time.time() - 60)
    await ended(store, "old", time.time() - 7200)
    removing = Retention(store, files_of(store, tmp_path), RetentionRules(None, {}, {"me": 0.0}))
    assert await removing._remove() == (1, 1)
    assert [each.id for each in await store.list(None) if each.data_removed] == ["old"]
    assert [each.id for each in await store.conversations.list("me")] == [young.id]
    await store.close()


async def test_conversations_of_models_and_accounts_have_times_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_retention, "BATCH", 3)
    monkeypatch.setattr(expired, "SCANNED", 4)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    content = ConversationContent(settings=ConversationSettings(), messages=[], leaf=None)
    now = time.time()
    for number in range(20):
        for owner, model in (("me", "a/b"), ("me", "short/model"), ("ada", "a/b")):
            title = f"{model} {number}"
            await store.conversations.add(
                new_conversation(owner, title, model, content, now - 100.0 * number - 50)
            )
    rules = RetentionRules(1500.0, {"short/*": 500.0}, {"ada": 0.0})
    removing = Retention(store, files_of(store, tmp_path), rules)
    counts = [(await removing._remove())[1] for _ in range(20)]
    assert (max(counts), sum(counts), counts[-1]) == (3, 20 + 15 + 5, 0)
    left = {f"a/b {number}" for number in range(15)} | {f"short/model {number}" for number in range(5)}
    assert {each.title for each in await store.conversations.list("me")} == left
    assert await store.conversations.list("ada") == []
    await store.close()


async def test_a_search_continues_where_the_last_one_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    now = time.time()
    content = ConversationContent(settings=ConversationSettings(), messages=[], leaf=None)
    removing = Retention(store, files_of(store, tmp_path), RetentionRules(None, {}, {"ada": 0.0}))
    for number in range(3):
        await ended(store, f"p{number}", now - 1000)
        await store.conversations.add(new_conversation("me", "kept", "a/b", content, now - 1000))
    assert await removing._remove() == (0, 0)
    # The searches are past these: only the next search of everything, after an hour, finds them.
    await ended(store, "late", now - 900, owner="ada")
    await store.conversations.add(new_conversation("ada", "late", "a/b", content, now - 900))
    assert await removing._remove() == (0, 0)
    removing._look_at_all()
    assert await removing._remove() == (1, 1)
    await store.close()


async def test_nothing_is_written_if_nothing_is_old_enough(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    await store.own()
    await ended(store, "kept", 100.0)
    await store.indexed()
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # a write of the store would fail
        found = await store.remove_data(150.0, 10, applies=lambda model, owner: owner == "ada")
        assert found == ([], None)
        first, last = Position(-1.0, 0), Position(100.0, 1 << 40)
        assert (await store.remove_data(50.0, 10, after=first)).ids == []
        assert (await store.remove_data(150.0, 10, after=last)).ids == []
    assert (await store.remove_data(150.0, 10)).ids == ["kept"]
    await store.close()


async def test_a_prediction_that_becomes_an_example_meanwhile_keeps_its_data(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    await ended(store, "shown", 100.0)
    await ended(store, "other", 100.0)
    loop = asyncio.get_running_loop()

    def applies(model: str, owner: str) -> bool:  # runs in the thread of the search
        loop.call_soon_threadsafe(store.registry.add_example, model, "shown")
        return True

    assert (await store.remove_data(150.0, 10, applies=applies)).ids == ["other"]
    await store.close()


async def test_pages_are_given_back_in_small_steps(tmp_path: Path) -> None:
    file = tmp_path / "db"
    store = await with_long_inputs(file)
    assert await store.compact()
    full = file.stat().st_size
    assert len((await store.remove_data(150.0, 100)).ids) == 20  # gives back as many pages as one step
    assert not await store.compact(SHRINK_PAGES)  # some are left
    returned = (full - file.stat().st_size) / 4096
    assert 2 * SHRINK_PAGES <= returned <= 2 * SHRINK_PAGES + 2  # and pages of SQLite's map of the file
    assert await store.compact(10 * SHRINK_PAGES)
    assert file.stat().st_size < full / 2
    await store.close()


async def test_a_gentle_checkpoint_leaves_the_file_while_an_old_state_is_read(tmp_path: Path) -> None:
    file = tmp_path / "db"
    store = Store(file, durability="normal")
    await store.open()
    await ended(store, "first", 100.0)
    with closing(connect_reader(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM predictions").fetchone()
        await ended(store, "second", 100.0)
        size = file.with_name("db-wal").stat().st_size
        assert not checkpoint(file, gentle=True)
        assert not await store.compact(SHRINK_PAGES)
        assert file.with_name("db-wal").stat().st_size >= size > 0
    assert checkpoint(file, gentle=True)
    assert file.with_name("db-wal").stat().st_size == 0
    await store.close()


async def test_a_prediction_that_has_just_ended_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_retention, "_KEPT", 0.0)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    removing = Retention(store, files_of(store, tmp_path), RetentionRules(None, {}, {"me": 0.0}))
    removing.start()
    await ended(store, "second", time.time())
    await until_removed(store, {"second"})
    await ended(store, "first", time.time() - 30)  # its end is stored later
    await until_removed(store, {"first", "second"})
    await removing.close()
    await store.close()


async def test_data_stays_until_its_webhook_is_delivered(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    webhook = Webhook(url="https://x.example", events=("completed",), origin="https://y.example")
    await ended(store, "sent", 100.0, webhook=webhook)
    assert (await store.remove_data(150.0, 10)).ids == []
    (delivery,) = await store.deliveries("sent")
    await store.end_delivery(delivery.id)
    assert (await store.remove_data(150.0, 10)).ids == ["sent"]
    await store.close()


async def test_removed_data_is_in_no_file_of_the_database(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    for number in range(20):
        await ended(store, f"p{number}", 100.0, f"Zebra-7391 {number} " * (1 if number % 2 else 3000))
    removing = Retention(store, files_of(store, tmp_path), RetentionRules(60.0))
    removing.start()
    deadline = time.monotonic() + 60
    while any(b"Zebra-7391" in file.read_bytes() for file in tmp_path.glob("db*")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await removing.close()
    await store.close()
