"""What is removed after a while, and what stays."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from appliance.config import FilesConfig
from appliance.domain.conversation import ConversationContent, ConversationSettings, new_conversation
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.files import prediction_retention
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.prediction_retention import Retention
from appliance.protocols import serializers
from appliance.store import Store


def prediction(id: str, created_at: float) -> Prediction:
    return Prediction(
        id=id,
        model="a/b",
        version="v",
        owner="me",
        input={"prompt": "secret"},
        created_at=created_at,
        stream_token=id,
    )


def files_of(store: Store, folder: Path) -> FileStore:
    return FileStore(store.files, folder / "files", FilesConfig())


async def ended(store: Store, id: str, at: float, text: str = "answer") -> Prediction:
    started = prediction(id, at).started(at, 0.0, None)
    record = started.evolve(output=[text], logs="log").finished(Status.FAILED, at, "it broke")
    await store.create(prediction(id, at))
    await store.claim(started)
    await store.finish(record)
    return record


async def test_data_goes_and_the_record_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    old, young = await ended(store, "old", 100.0), await ended(store, "young", 200.0)
    await store.create(prediction("waiting", 50.0))
    assert await store.remove_data(150.0, 10) == ["old"]
    assert await store.remove_data(150.0, 10) == []
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
    assert len(await store.remove_data(150.0, 100)) == 20
    await store.close()
    assert file.stat().st_size < full / 2


async def test_it_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_retention, "BATCH", 2)
    store = Store(tmp_path / "db", durability="normal")
    await store.open()
    for number in range(5):
        await ended(store, f"p{number}", 100.0)
    removing = Retention(store, files_of(store, tmp_path), 60.0, None)
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
    keeping = Retention(store, files_of(store, tmp_path), None, None)
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
    keeping = Retention(store, files_of(store, tmp_path), None, None)
    keeping.start()
    await asyncio.sleep(0.02)
    assert len(await store.conversations.list("me")) == 6
    keeping.change(3600.0, None)
    deadline = time.monotonic() + 60
    while len(found := await store.conversations.list("me")) > 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert [each.id for each in found] == [young.id]
    await keeping.close()
    await store.close()
