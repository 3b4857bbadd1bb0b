"""Ended predictions that are stored without an index first: found at once, moved soon, never lost."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.prediction import Prediction, Status, new_id
from appliance.store import Store, VersionRow, imports, unindexed
from tests.support.store_files import make, opened, query

pytestmark = pytest.mark.usefixtures("database")


def ended(**changes: Any) -> Prediction:
    """A prediction that ran for a second and succeeded."""
    record = make(**changes).started(1000.5, 0.0, "cpu").evolve(output="Hello")
    return record.finished(Status.SUCCEEDED, 1001.5)


def ids_in(path: Path, table: str) -> list[str]:
    return [id for (id,) in query(path, f"SELECT id FROM {table} ORDER BY number")]


async def test_it_is_read_by_id_and_stream_token_before_it_is_moved(store: Store, path: Path) -> None:
    record = ended()
    await store.create(record)
    assert await store.get(record.id) == record
    assert await store.by_stream_token(record.stream_token) == record
    assert await store.get(new_id()) is None
    assert ids_in(path, "unindexed_predictions") == [record.id]
    assert ids_in(path, "predictions") == []


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.list("me"),
        lambda store: store.run_counts(),
        lambda store: store.usage.rows(["model"]),
        lambda store: store.children("parent"),
        lambda store: store.registry.last_use("me/hello"),
        lambda store: store.remove_data(before=2000.0, limit=10),
        lambda store: store.remove_version("0" * 64, "acme/hello"),
    ],
    ids=["list", "run counts", "usage", "children", "last use", "data removal", "version removal"],
)
async def test_whatever_needs_all_predictions_finds_it(store: Store, read: Callable[[Store], Any]) -> None:
    write = store.create(ended(deployment="me/hello", parent="parent"))  # not awaited: it is queued only
    assert await read(store)
    await write


async def test_a_version_that_only_it_names_is_kept(store: Store) -> None:
    await store.record_version(VersionRow(id="0" * 64, model="acme/hello", created_at=1.0, document={}))
    await store.create(ended())
    await store.forget_versions("acme/hello", "1" * 64)
    assert [row.id for row in await store.versions("acme/hello")] == ["0" * 64]


async def test_many_are_moved_together(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unindexed, "_MOST", 3)
    records = [ended() for _ in range(4)]
    await asyncio.gather(*[store.create(record) for record in records])
    await store.check()  # a write after the move
    assert ids_in(path, "predictions") == [record.id for record in records[:3]]
    assert ids_in(path, "unindexed_predictions") == [records[3].id]
    assert sorted(record.id for record in await store.list("me")) == sorted(record.id for record in records)
    assert (await store.run_counts()) == {"acme/hello": 4}
    assert [await store.get(record.id) for record in records] == records


async def test_it_is_moved_soon_although_nothing_is_read(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unindexed, "_LONGEST", 0.001)
    record = ended()
    await store.create(record)
    while ids_in(path, "predictions") != [record.id]:
        await asyncio.sleep(0.001)
    assert ids_in(path, "unindexed_predictions") == []


async def left_behind(path: Path, record: Prediction) -> None:
    """Leave a prediction in the table, as a process that is killed does."""
    store = await opened(path)
    await store.create(record)
    store._count = 0  # so that it does not move it when it is closed
    await store.close()
    assert ids_in(path, "unindexed_predictions") == [record.id]


async def test_what_a_killed_process_left_is_moved_by_the_next(path: Path) -> None:
    record = ended()
    await left_behind(path, record)
    second = await opened(path)
    await second.own()
    assert [each.id for each in await second.list("me")] == [record.id]
    assert [usage.succeeded for usage in await second.usage.rows(["model"])] == [1]
    await second.close()


async def test_a_move_that_fails_is_repeated(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM unindexed_predictions")
        raise sqlite3.OperationalError("database or disk is full")

    record = ended()
    await store.create(record)
    with monkeypatch.context() as patched:
        patched.setattr(unindexed, "move_all", full)
        assert await store.list("me") == []
    assert "cannot move 1 ended predictions to the table predictions" in caplog.text
    assert await store.get(record.id) == record
    assert await store.list("me") == [record]


async def test_short_writes_beside_a_move_stay_on_the_event_loop(
    store: Store, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setattr(unindexed, "_MOST", 1)
    threads: list[str] = []

    def recorded(connection: sqlite3.Connection) -> None:
        threads.append(threading.current_thread().name)

    monkeypatch.setattr(unindexed, "move_all", recorded)
    move = store.create(ended())
    after = store.write(recorded, short=True)
    await asyncio.gather(move, after)
    remote = database == "postgresql"  # the event loop does not wait for a server
    assert threads == ["store-writer", "store-writer" if remote else "MainThread"]


async def test_it_is_moved_when_the_store_is_closed(path: Path) -> None:
    store = await opened(path)
    record = ended()
    await store.create(record)
    await store.close()
    assert (ids_in(path, "predictions"), ids_in(path, "unindexed_predictions")) == ([record.id], [])


async def test_a_process_that_does_not_own_the_database_lists_it_too(path: Path) -> None:
    record = ended()
    await left_behind(path, record)
    reader = await opened(path)
    assert await reader.list(None) == [record]
    await reader.close()


async def test_an_appliance_starts_although_the_move_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    record = ended()
    await left_behind(path, record)
    store = await opened(path)
    with monkeypatch.context() as patched:
        patched.setattr(unindexed, "move_all", full)
        await store.own()
    assert "database or disk is full" in caplog.text
    assert await store.list("me") == [record]
    await store.close()


async def test_an_import_skips_it(path: Path) -> None:
    record = ended()
    await left_behind(path, record)
    store = await opened(path)
    assert await imports.add_missing(store, [record, ended()]) == 1
    assert len(await store.list("me")) == 2
    assert await store.run_counts() == {"acme/hello": 2}
    await store.close()


async def test_an_import_after_the_deletion_of_the_version_counts_usage_once(store: Store) -> None:
    record, other = ended(), ended()
    assert await imports.add_missing(store, [record, other]) == 2
    counted = await store.usage.rows(())
    removed = await store.remove_version(record.version, record.model)
    assert set(removed) == {record.id, other.id}
    assert await store.list("me") == []
    assert await store.usage.rows(()) == counted
    fresh = ended()
    assert await imports.add_missing(store, [record, other, fresh]) == 3
    assert len(await store.list("me")) == 3
    (usage,) = await store.usage.rows(())
    assert (usage.predictions, usage.predict_us) == (3, 3_000_000)
    assert await store.run_counts() == {"acme/hello": 3}
