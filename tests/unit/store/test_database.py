"""The SQLite file under the store: group commit, other processes, upgrades, damage, and its queries."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import StoreError
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.store import Store, VersionRow
from appliance.store.database import connect, store_error, upgrade
from appliance.store.queries import QUERIES, STEPS, narrowed
from appliance.store.writer import Writer
from tests.support import store_files
from tests.support.store_files import created

KEY = Token(id="key", name="key", owner="me", digest="0" * 64, created_at=1.0, scope=Scope.ADMIN)


def make(**changes: Any) -> Prediction:
    """A new prediction."""
    return store_files.make(**{"input": {}, "created_at": 1.0, **changes})


def rows_of(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(count)


# Group commit


class Traced:
    """A writer over a table of numbers, and the statements that reach the database."""

    def __init__(self, path: Path) -> None:
        self.statements: list[str] = []
        connection = connect(path, "normal")
        connection.execute("CREATE TABLE numbers (number INTEGER UNIQUE)")
        connection.set_trace_callback(self.statements.append)
        self.writer = Writer(connection, path)
        self.held = threading.Event()
        self.gate = threading.Event()

    async def hold(self) -> asyncio.Future[bool]:
        """Keep the thread busy until ``gate`` opens, so that what is put meanwhile becomes one batch."""

        def action(_: sqlite3.Connection) -> bool:
            self.held.set()
            return self.gate.wait(60)

        future = self.writer.put(action)
        assert await asyncio.to_thread(self.held.wait, 10)
        return future

    def add(self, number: int, error: Exception | None = None, *, short: bool = False) -> asyncio.Future[int]:
        """Insert a number, then fail with ``error``."""

        def action(connection: sqlite3.Connection) -> int:
            connection.execute("INSERT INTO numbers VALUES (?)", (number,))
            if error is not None:
                raise error
            return number

        return self.writer.put(action, short=short)


@pytest.mark.parametrize("short", [True, False])
async def test_what_gathers_meanwhile_is_committed_at_once(path: Path, *, short: bool) -> None:
    traced = Traced(path)
    held = await traced.hold()
    added = [traced.add(number, short=short) for number in range(5)]
    traced.gate.set()
    assert await held
    assert await asyncio.gather(*added) == [0, 1, 2, 3, 4]
    assert traced.statements.count("COMMIT") == 2
    await traced.writer.close()


@pytest.mark.parametrize("short", [True, False])
async def test_a_write_that_fails_half_way_is_undone_alone(path: Path, *, short: bool) -> None:
    traced = Traced(path)
    held = await traced.hold()
    add = partial(traced.add, short=short)
    added = [add(0), add(1, TypeError("a bug")), add(2), add(2), add(3)]
    traced.gate.set()
    await held
    outcomes = await asyncio.gather(*added, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, TypeError, int, StoreError, int]
    assert str(path) in str(outcomes[3])
    await traced.writer.close()
    assert rows_of(path, "numbers") == 3


async def test_short_writes_run_on_the_event_loop_and_commit_in_the_thread(path: Path) -> None:
    traced = Traced(path)
    ran: list[str] = []

    def action(connection: sqlite3.Connection) -> None:
        ran.append(threading.current_thread().name)
        connection.execute("INSERT INTO numbers VALUES (1)")

    await traced.writer.put(action, short=True)
    await traced.writer.put(lambda _: ran.append(threading.current_thread().name))
    assert ran == [threading.current_thread().name, "store-writer"]
    await traced.writer.close()
    assert rows_of(path, "numbers") == 1


async def test_the_event_loop_does_not_wait_for_another_process_that_writes(path: Path) -> None:
    traced = Traced(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    added = traced.add(1, short=True)
    for _ in range(20):
        await asyncio.sleep(0)  # would raise or hang if the write waited on the event loop
    assert not added.done()
    other.execute("ROLLBACK")
    other.close()
    assert await added == 1
    await traced.writer.close()


async def test_cancelling_the_wait_does_not_take_the_write_back(store: Store) -> None:
    record = make()
    waiting = asyncio.ensure_future(asyncio.wait_for(store.create(record), 60))
    await asyncio.sleep(0)
    waiting.cancel()
    await store.record_version(VersionRow(id="v", model="m", created_at=1.0, document={}))
    assert await store.get(record.id) == record


async def test_close_commits_what_is_queued_and_ends_the_store(path: Path) -> None:
    store = await created(path)
    records = [make() for _ in range(50)]
    creations = [store.create(record) for record in records]
    await store.close()
    await asyncio.gather(*creations)
    with pytest.raises(StoreError, match="closed"):
        store.create(make())
    with pytest.raises(StoreError, match="not open"):
        await store.get(records[0].id)
    with pytest.raises(StoreError, match="not open"):
        await store.unfinished()
    assert not path.with_name(f"{path.name}-wal").exists()
    assert rows_of(path, "predictions") == 50


# The file


async def test_another_process_may_write_tokens_while_one_owns(store: Store, path: Path) -> None:
    await store.own()
    other = await created(path)
    await other.add_token(KEY)
    await other.close()
    assert await store.find_token(KEY.digest) == KEY


async def test_a_write_waits_for_another_process(store: Store, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    record = make()
    creation = store.create(record)
    assert await store.get(record.id) is None  # reading does not wait
    other.execute("COMMIT")
    other.close()
    await creation
    assert await store.get(record.id) == record


async def test_everything_is_there_after_reopening(path: Path) -> None:
    store = await created(path)
    record = make()
    await store.create(record)
    await store.close()
    store = await created(path)
    assert await store.get(record.id) == record
    await store.close()


async def test_the_database_is_private(store: Store, path: Path) -> None:
    await store.create(make())
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_a_newer_database_is_refused(path: Path) -> None:
    await (await created(path)).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="a newer appliance wrote") as refusal:
        await created(path)
    assert str(path) in str(refusal.value)


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"hello " * 1000)
    with pytest.raises(StoreError, match="not a database: restore it from a backup") as refusal:
        await created(path)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == b"hello " * 1000


@pytest.mark.parametrize("left", [0, 4096, 10_000])
async def test_a_database_that_was_cut_off_is_refused_and_left_alone(path: Path, left: int) -> None:
    store = await created(path)
    await store.own()
    await store.create(make())
    await store.close()
    os.truncate(path, left)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"truncated: it has {left:,} bytes.*start empty") as refusal:
        await created(path)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


async def test_an_empty_database_with_a_wal_loses_neither(path: Path) -> None:
    store = await created(path)
    await store.create(make())
    wal = path.with_name(f"{path.name}-wal")
    content = wal.read_bytes()
    await store.close()
    path.write_bytes(b"")
    wal.write_bytes(content)
    with pytest.raises(StoreError, match="truncated"):
        await created(path)
    assert wal.read_bytes() == content


async def test_an_empty_file_that_never_was_a_database_becomes_one(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    await (await created(path)).close()


@pytest.mark.parametrize("version", [0, 3])
async def test_another_program_s_database_is_refused_and_left_alone(path: Path, version: int) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(StoreError, match=r"another program \(tables: theirs\)") as refusal:
        await created(path)
    assert str(path) in str(refusal.value)
    assert rows_of(path, "theirs") == 0


async def test_damage_is_named_with_a_remedy(path: Path) -> None:
    store = await created(path)
    await store.create(make(input={"text": "x" * 100_000}))
    await store.close()
    connection = sqlite3.connect(path)
    (table,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'predictions'").fetchone()
    connection.close()
    content = path.read_bytes()
    path.write_bytes(content[: 4096 * (table - 1)] + b"\xff" * 4096 + content[4096 * table :])
    store = await created(path)
    with pytest.raises(StoreError, match="damaged: restore it from a backup") as refusal:
        await store.list("me")
    assert str(path) in str(refusal.value)
    with pytest.raises(StoreError, match="damaged: restore it from a backup"):
        await store.create(make())
    await store.close()


async def test_a_folder_that_cannot_hold_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "appliance.db"):
        with pytest.raises(StoreError, match="cannot open the database"):
            await created(path)


async def test_a_failed_step_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "appliance.store.database.STEPS", (*STEPS, "CREATE TABLE extra (a);\nCREATE TABLE tokens (a);")
    )
    with pytest.raises(StoreError, match="tokens already exists"):
        await created(path)
    monkeypatch.undo()
    store = await created(path)
    assert await store.unfinished() == []
    await store.close()


async def test_only_new_steps_are_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await created(path)
    record = make()
    await store.create(record)
    await store.close()
    monkeypatch.setattr("appliance.store.database.STEPS", (*STEPS, "CREATE TABLE extra (a);"))
    store = await created(path)
    assert await store.get(record.id) == record
    await store.close()
    assert rows_of(path, "extra") == 0


async def test_one_owner_at_a_time(store: Store, path: Path) -> None:
    await store.own()
    await store.own()
    other = await created(path)
    with pytest.raises(StoreError, match=rf"in use by another appliance \(pid {os.getpid()}\)"):
        await other.own()
    waiting = asyncio.ensure_future(other.own(patience=10))
    await asyncio.sleep(0)
    assert not waiting.done()
    await store.close()
    await waiting
    await other.close()


# The SQL


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """An empty database for all tests that only ask how SQLite carries out a query."""
    path = tmp_path_factory.mktemp("empty") / "appliance.db"
    connection = connect(path, "normal")
    upgrade(connection, path)
    yield connection
    connection.close()


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_described_and_uses_an_index(empty: sqlite3.Connection, name: str) -> None:
    description, statement = QUERIES[name].split("\n", 1)
    assert description.startswith("-- ")
    names = dict.fromkeys(sqlite_parameters(statement)) or [None] * statement.count("?")
    plan = [row[3] for row in empty.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", names)]
    unindexed = ["SCAN unindexed_predictions"]  # a hundred rows, at most
    whole_tables = {
        "prediction_by_id": unindexed,
        "prediction_by_stream_token": unindexed,
        "index_predictions": unindexed,
        "output_paths": unindexed,
        "index_inputs": ["SCAN u"],
        "run_counts": ["SCAN run_counts"],
        "usage": ["USE TEMP B-TREE FOR GROUP BY"],  # of the days asked for, a row a day and user
        "due_deliveries": [  # of the few receivers, whom an index finds, and of what is due of each
            "SCAN r",
            "SCAN r",
            "USE TEMP B-TREE FOR ORDER BY",
        ],
        "webhook_keys": ["SCAN webhook_keys", "USE TEMP B-TREE FOR ORDER BY"],  # one or two an account
        "insert_first_webhook_key": ["SCAN CONSTANT ROW", "SCAN webhook_keys"],
        "claim_webhook_keys": ["SCAN webhook_keys"],
        "expire_webhook_keys": ["SCAN webhook_keys"],
        "delete_webhook_keys": ["SCAN webhook_keys"],
        "all_tokens": ["SCAN tokens", "USE TEMP B-TREE FOR ORDER BY"],
        "file_paths": ["SCAN files"],  # once at start
        "file_ids": ["SCAN files"],  # once at start, with files.s3
        "begin_object": ["SCAN CONSTANT ROW"],
        "all_objects": ["SCAN bucket_objects"],  # for backups
        "count_objects": ["SCAN bucket_objects", "USE TEMP B-TREE FOR GROUP BY"],  # once at start
        "oldest_with_files": [  # every few seconds, and only where there is a limit that is exceeded
            "USE TEMP B-TREE FOR GROUP BY",
            "USE TEMP B-TREE FOR ORDER BY",
        ],
        "all_models": ["SCAN models", "USE TEMP B-TREE FOR ORDER BY"],  # what people made by hand: few
        "all_adapters": ["SCAN adapters"],
        "all_projects": ["SCAN projects"],
        "all_examples": ["SCAN examples"],
        "all_footprints": ["SCAN footprints"],  # once at start
        "deployments": ["SCAN r"],
        "erasures": ["SCAN erasures"],  # those under way
        "builds_of_all": ["SCAN builds"],
        "count_tokens_of": ["SCAN tokens"],  # erasures of accounts, and before them, are rare
        "credential_ids_of": ["SCAN tokens"],
        "revoke_tokens_of": ["SCAN tokens"],
        "delete_tokens_of": ["SCAN tokens"],
        "count_webhook_keys_of": ["SCAN webhook_keys"],
        "delete_webhook_keys_of": ["SCAN webhook_keys"],
        "count_usage_of": ["SCAN usage"],
        "keep_usage_without_account": ["SCAN usage", "USE TEMP B-TREE FOR GROUP BY"],
        "delete_usage_of": ["SCAN usage"],
    }
    slow = [step for step in plan if step.startswith(("SCAN", "USE TEMP")) and "USING INDEX" not in step]
    assert slow == whole_tables.get(name, [])


@pytest.mark.parametrize("direction", ["newer", "older"])
@pytest.mark.parametrize("owner", ["me", None])
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"token": "t"}, "predictions_by_token (token=?"),
        ({"parent": "p", "status": "failed"}, "predictions_by_parent (parent=?"),
        ({"source": "web"}, "predictions_by_source (source=?"),
        ({"status": "failed"}, "predictions_by_{}end ({}status=?"),
        ({"status": "failed", "model": "a/b"}, "predictions_by_{}end ({}status=?"),
        ({"status": "processing"}, "predictions_unfinished ("),
        ({"model": "a/b"}, "predictions_by_{}model ({}model=?"),
        ({"model": "a/b", "status": "succeeded"}, "predictions_by_{}model ({}model=?"),
        ({"slower_than": 2.0}, "predictions_slow{slow}"),
        ({"slower_than": 1.0, "model": "a/b", "status": "succeeded"}, "predictions_slow{slow}"),
        ({"slower_than": 1.0, "status": "failed"}, "predictions_by_{}end ({}status=?"),
        ({"slower_than": 1.0, "status": "processing"}, "predictions_unfinished ("),
        ({"slower_than": 1.0, "token": "t"}, "predictions_by_token (token=?"),
        ({"slower_than": 1.0, "parent": "p"}, "predictions_by_parent (parent=?"),
        ({"slower_than": 1.0, "source": "web"}, "predictions_by_source (source=?"),
        ({"slower_than": 0.5, "model": "a/b"}, "predictions_by_{}model ({}model=?"),
    ],
)
def test_a_list_that_is_narrowed_looks_at_nothing_else(
    empty: sqlite3.Connection, direction: str, owner: str | None, filters: dict[str, str], index: str
) -> None:
    if owner:
        owned = index.format("owner_and_", "owner=? AND ", slow="_by_owner (owner=? AND ")
    else:
        owned = index.format("", "", slow=" (")
    training = {"training": False} if owner else {}
    for name in ("predictions", "all_predictions") if owner else ("all_predictions",):
        training_filter = training if name == "predictions" else {}
        assert owned in plan_of(empty, f"{name}_{direction}", {"owner": owner, **training_filter, **filters})


def test_trainings_and_an_owner_s_lists_have_indexes(empty: sqlite3.Connection) -> None:
    assert "trainings_by_creation (" in plan_of(empty, "all_predictions_older", {"training": True})
    slow = {"training": True, "slower_than": 1.0}
    assert "trainings_by_creation (" in plan_of(empty, "all_predictions_older", slow)
    assert "predictions_by_owner (owner=?" in plan_of(empty, "all_predictions_older", {"owner": "me"})
    mine = plan_of(empty, "predictions_older", {"owner": "me", "training": True})
    assert "predictions_by_time (owner=? AND <expr>=?" in mine


def plan_of(empty: sqlite3.Connection, name: str, filters: dict[str, Any]) -> str:
    """How SQLite carries out a list; it sorts nothing."""
    every = ("owner", "training", "model", "status", "source", "parent", "token", "slower_than")
    query = narrowed(name, dict.fromkeys(every) | filters)
    names = dict.fromkeys(sqlite_parameters(query))
    plan = "; ".join(row[3] for row in empty.execute(f"EXPLAIN QUERY PLAN {query}", names))
    assert "SCAN" not in plan
    assert "USE TEMP" not in plan
    return plan


def sqlite_parameters(statement: str) -> list[str]:
    """The names after colons."""
    return re.findall(r":(\w+)", statement)


async def test_an_empty_file_is_refused_where_there_was_a_database(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()  # as a start leaves it that is cut off at once
    store = Store(path)
    await store.open()
    await store.own()
    await store.close()
    os.truncate(path, 0)
    with pytest.raises(StoreError, match="the file is truncated: it has 0 bytes"):
        await Store(path).open()
    path.unlink()
    await store.open()
    await store.close()


def test_clients_do_not_see_the_error_of_a_database() -> None:
    error = store_error(sqlite3.OperationalError("secret text"), "postgresql://anna@db.internal/appliance")
    assert "secret text" in str(error)
    assert error.detail.startswith("The database of the appliance reported an error")
