"""What is removed after a while, and what stays."""

from __future__ import annotations

import asyncio
import time
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
from appliance.store import Store, deletions


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


async def test_space_is_given_back_to_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "db"
    store = Store(file, durability="normal")
    await store.open()
    for number in range(20):
        await ended(store, f"p{number}", 100.0, "x" * 200_000)
    await store.close()
    full = file.stat().st_size
    await store.open()
    assert len((await store.remove_data(150.0, 100)).ids) == 20
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
    monkeypatch.setattr(deletions, "_SCANNED", 4)
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


async def test_a_prediction_that_has_just_ended_is_not_passed_over(tmp_path: Path) -> None:
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
