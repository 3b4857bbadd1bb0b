"""The store on PostgreSQL: one owner, lost connections, what it refuses, and its SQL."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError, StoreUnavailable, UnstorableValue
from appliance.domain.prediction import Prediction, Status, new_id, new_stream_token
from appliance.store import AuditFilter, Store, connections, postgres_connection, writer
from appliance.store import postgres as store_postgres
from appliance.store.postgres import public_url
from appliance.store.postgres_connection import ConnectionLost, PostgresConnection
from appliance.store.postgres_queries import STEPS, translated
from appliance.store.queries import QUERIES
from tests.support.postgres_server import PostgresServer
from tests.support.store_files import created, query, rows_of, url_of

pytestmark = pytest.mark.usefixtures("postgres")


def make(**changes: Any) -> Prediction:
    prediction = Prediction(
        id=new_id(),
        model="acme/hello",
        version="0" * 64,
        owner="me",
        input={"text": "Alice"},
        created_at=1000.0,
        stream_token=new_stream_token(),
    )
    return prediction.evolve(**changes)


@pytest.fixture
async def store(path: Path, postgres: PostgresServer) -> AsyncIterator[Store]:
    store = await created(path)
    yield store
    await store.close()


def writing(store: Store) -> PostgresConnection:
    connection = store._owner
    assert connection is not None
    return connection


def end_sessions(path: Path) -> None:
    """End all other sessions, as a restart of the server does."""
    query(
        path,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


# One owner


async def test_one_owner_at_a_time(store: Store, path: Path) -> None:
    await store.own()
    await store.own()
    other = await created(path)
    with pytest.raises(StoreError, match=rf"in use by another appliance \(.*, pid {os.getpid()}\)"):
        await other.own()
    waiting = asyncio.ensure_future(other.own(patience=30))
    await asyncio.sleep(0)
    assert not waiting.done()
    await store.close()
    await waiting
    await other.close()


async def test_another_process_may_write_while_one_owns(store: Store, path: Path) -> None:
    await store.own()
    other = await created(path)
    await other.create(record := make())
    await other.close()
    assert await store.get(record.id) == record


async def test_the_owner_stays_the_owner_when_its_connection_is_lost(store: Store, path: Path) -> None:
    await store.own()
    end_sessions(path)
    await store.create(record := make())
    assert await store.get(record.id) == record
    other = await created(path)
    with pytest.raises(StoreError, match="in use by another appliance"):
        await other.own()
    await other.close()
    assert store.lost is None


async def test_an_owner_ends_its_former_session_that_the_server_still_has(store: Store, path: Path) -> None:
    await store.own()
    connection = writing(store)
    former, connection._connection = connection._connection, None  # as after a cut of the network
    await store.create(make())
    assert rows_of(path, "predictions") == 1
    assert former is not None
    with pytest.raises(Exception, match="terminating connection"):
        former.execute("SELECT 1")
    former.close()


async def test_a_process_whose_database_was_taken_over_writes_no_more(store: Store, path: Path) -> None:
    await store.own()
    connection = writing(store)
    connection._retry_at = float("inf")  # it cannot connect
    end_sessions(path)
    with pytest.raises(StoreUnavailable):
        await store.create(make())
    other = await created(path)
    await other.own()
    connection._retry_at = 0.0
    for _ in range(2):
        with pytest.raises(StoreError, match="has become the owner of the database"):
            await store.create(make())
    await other.close()
    with pytest.raises(StoreUnavailable, match="has become the owner of the database") as failed:
        await store.create(make())  # although the other one has gone
    assert "owner" not in failed.value.detail
    assert store.lost is not None
    assert rows_of(path, "predictions") == 0


# Locks


async def test_writes_continue_after_a_lock_timeout(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed statement leaves a transaction in which PostgreSQL refuses all further statements."""
    monkeypatch.setattr(writer, "BUSY_TIMEOUT", 0.0)
    writing(store).run("SET lock_timeout = '10ms'")
    with psycopg.connect(url_of(path) or "") as other:
        other.execute(f"SELECT pg_advisory_xact_lock({postgres_connection._WRITE_LOCK}, hashtext('public'))")
        with pytest.raises(StoreError, match="another process held the write lock"):
            await store.create(make())
    await store.create(record := make())
    assert await store.get(record.id) == record


# Reads


async def test_a_single_row_does_not_wait_for_slow_reads(store: Store) -> None:
    held, begun = threading.Event(), threading.Semaphore(0)

    def slow(_: sqlite3.Connection) -> None:
        begun.release()
        held.wait()

    reads = [asyncio.ensure_future(store.read(slow)) for _ in range(connections._SERVER_READERS)]
    for _ in reads:
        await asyncio.to_thread(begun.acquire)
    try:
        assert await asyncio.wait_for(store.files.get("missing"), 60) is None
    finally:
        held.set()
    await asyncio.gather(*reads)


# Lost connections


async def test_reads_and_writes_recover_from_a_lost_connection(store: Store, path: Path) -> None:
    await store.create(record := make())
    for _ in range(3):
        end_sessions(path)
        assert await store.get(record.id) == record
        assert [each.id for each in await store.list("me")] == [record.id]
        await store.check()


async def test_while_the_server_is_away_requests_fail_with_503(
    store: Store, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "_DELAYS", (0.0,))
    await store.own()
    await store.create(record := make())
    postgres.stop(mode="fast")
    try:
        with pytest.raises(
            StoreUnavailable, match=r"postgresql://postgres@/test_\w+: cannot connect"
        ) as failed:
            await store.create(make())
        assert (failed.value.status, failed.value.retry_after) == (503, 5)
        assert "postgres" not in failed.value.detail
        with pytest.raises(StoreUnavailable):
            await store.get(record.id)
        with pytest.raises(StoreUnavailable):
            await store.list("me")
    finally:
        postgres.start()
    assert await store.get(record.id) == record
    await store.create(other := make())
    assert {each.id for each in await store.list("me")} == {record.id, other.id}


async def test_attempts_to_connect_are_further_and_further_apart(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, attempts = writing(store), []
    end_sessions(path)

    def refused(**_: Any) -> Any:
        attempts.append(connection._failures)
        raise ConnectionLost("refused")

    monkeypatch.setattr(connection._server, "connect", refused)
    for _ in range(50):
        with pytest.raises(StoreUnavailable):
            await store.check()
    assert 1 <= len(attempts) < 10
    monkeypatch.undo()
    connection._retry_at = 0.0
    await store.check()


def interrupt_commit(
    connection: PostgresConnection, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> list[str]:
    """Lose the connection during the next COMMIT; the returned list is not empty afterwards."""
    execute, interrupted = connection._execute, list[str]()

    def interrupt(statement: str, parameters: Any = None) -> Any:
        if statement != "COMMIT" or interrupted:
            return execute(statement, parameters)
        interrupted.append(statement)
        if committed:
            execute(statement, parameters)
        connection._disconnect()
        raise ConnectionLost("the network was cut")

    monkeypatch.setattr(connection, "_execute", interrupt)
    return interrupted


@pytest.mark.parametrize("committed", [True, False])
async def test_an_interrupted_commit_takes_effect_once(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    """The server is asked whether it has committed the transaction whose COMMIT was not answered."""
    await store.own()
    connection = writing(store)
    interrupted = interrupt_commit(connection, monkeypatch, committed=committed)
    records = [make(), make()]
    await asyncio.gather(*(store.create(record) for record in records))
    assert interrupted
    assert rows_of(path, "predictions") == 2
    assert await store.run_counts() == {"acme/hello": 2}


async def test_the_transaction_id_of_a_lost_transaction_may_be_used_again(
    store: Store, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that crashed during a COMMIT gives its transaction id to the next transaction."""
    monkeypatch.setattr(postgres_connection, "_DELAYS", (0.0,))
    await store.own()
    await store.create(make())
    connection, execute = writing(store), writing(store)._execute
    ids: list[Any] = []

    def interrupt(statement: str, parameters: Any = None) -> Any:
        if statement != "COMMIT" or ids:
            return execute(statement, parameters)
        ids.append(execute("SELECT pg_current_xact_id()::text").fetchone()[0])
        postgres.stop()
        postgres.start()
        while postgres.query("SELECT pg_current_xact_id()::text") < [(ids[0],)]:
            pass  # committed transactions of another program
        return execute(statement, parameters)

    monkeypatch.setattr(connection, "_execute", interrupt)
    with pytest.raises(StoreUnavailable):
        await store.create(lost := make())
    assert ids
    assert await store.get(lost.id) is None


async def test_an_outcome_that_stays_open_is_not_known(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is still open in the lost session, which this user cannot end."""
    connection, execute, lost = writing(store), writing(store)._execute, list[Any]()

    def interrupt(statement: str, parameters: Any = None) -> Any:
        if statement != "COMMIT" or lost:
            return execute(statement, parameters)
        lost.append(connection._connection)
        connection._connection = None
        connection._sessions.clear()
        raise ConnectionLost("the network was cut")

    monkeypatch.setattr(postgres_connection, "_RESOLVE", 0.0)
    monkeypatch.setattr(connection, "_execute", interrupt)
    monkeypatch.setitem(store_postgres._SESSION, "lock_timeout", "50ms")
    with pytest.raises(StoreUnavailable, match="not known whether the last writes were committed"):
        await store.create(make())
    lost[0].close()


async def test_an_owner_that_cannot_take_its_lock_again_does_not_write(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because a statement such as VACUUM FULL locks a table for long."""
    monkeypatch.setitem(store_postgres._SESSION, "lock_timeout", "50ms")
    monkeypatch.setattr(postgres_connection, "_DELAYS", (0.0,))
    await store.own()
    writing(store)._retry_at = float("inf")
    end_sessions(path)
    with pytest.raises(StoreUnavailable):
        await store.create(make())
    other = await created(path)
    await other.own()
    writing(store)._retry_at = 0.0
    with psycopg.connect(url_of(path) or "") as program:
        program.execute("LOCK TABLE store_owner IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="the new connection cannot be used"):
            await store.create(make())
    with pytest.raises(StoreError, match="has become the owner of the database"):
        await store.create(make())
    assert rows_of(path, "predictions") == 0
    await other.close()


async def test_an_interrupted_takeover_leaves_one_owner(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = writing(store)
    interrupted = interrupt_commit(connection, monkeypatch, committed=True)
    await store.write(lambda _: connection.take_ownership("the first"), alone=True)
    assert interrupted
    other = await created(path)
    await other.own()  # the first has lost its lock, and has not connected again
    with pytest.raises(StoreError, match="has become the owner of the database"):
        await store.create(make())
    await other.create(make())
    await other.close()
    assert rows_of(path, "predictions") == 1


async def test_an_owner_whose_takeover_was_interrupted_takes_the_lock_again(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_commit(writing(store), monkeypatch, committed=True)
    await store.own()
    await store.create(make())
    other = await created(path)
    with pytest.raises(StoreError, match="in use by another appliance"):
        await other.own()
    await other.close()


async def test_a_takeover_that_was_not_committed_fails(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_commit(writing(store), monkeypatch, committed=False)
    with pytest.raises(StoreUnavailable):
        await store.own()
    other = await created(path)
    await other.own()
    await other.close()


async def test_writes_whose_outcome_is_not_known_are_not_repeated(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, execute = writing(store), writing(store)._execute

    def interrupt(statement: str, parameters: Any = None) -> Any:
        if statement != "COMMIT":
            return execute(statement, parameters)
        execute(statement, parameters)
        connection._disconnect()
        connection._retry_at = float("inf")
        raise ConnectionLost("the network was cut")

    with monkeypatch.context() as patch:
        patch.setattr(postgres_connection, "_RESOLVE", 0.0)
        patch.setattr(connection, "_execute", interrupt)
        writes = [store.create(make()), store.create(make())]
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(outcome, StoreUnavailable)
            assert "not known whether the last writes were committed" in str(outcome)
    connection._retry_at = 0.0
    await store.check()
    assert rows_of(path, "predictions") == 2


async def test_a_connection_that_is_lost_between_statements_loses_the_write(store: Store, path: Path) -> None:
    def action(connection: sqlite3.Connection) -> None:
        connection.execute(QUERIES["insert_secret"], {"name": "a", "value": "b"})
        end_sessions(path)
        connection.execute(QUERIES["insert_secret"], {"name": "c", "value": "d"})

    with pytest.raises(StoreUnavailable):
        await store.write(action)
    assert rows_of(path, "secrets") == 0


# Backups


async def test_a_dump_is_restored_with_everything(store: Store, path: Path, postgres: PostgresServer) -> None:
    ended = make().started(1.0, 0.0, "cpu").finished(Status.SUCCEEDED, 2.0)
    await store.create(ended)
    await store.create(make())
    await store.audit.record(AuditEvent(action="test"))
    await store.indexed()
    usage = await store.usage.rows(["model"])
    (database,) = re.findall(r"test_\w+", store.name)
    postgres.copy(database, "copied")
    copied = Store(path, url=postgres.url("copied"))
    await copied.open()
    await copied.own()
    assert await copied.list("me") == await store.list("me")
    assert await copied.usage.rows(["model"]) == usage
    assert (await copied.audit.verify()).fault is None
    await copied.create(fresh := make())  # numbers of rows continue
    assert await copied.get(fresh.id) == fresh
    await copied.close()
    postgres.query("DROP DATABASE copied")


# What is refused


async def test_the_password_is_in_no_message() -> None:
    url = "postgresql://anna:secret@127.0.0.1:1/db?sslmode=disable&password=secret"
    assert public_url(url) == "postgresql://anna@127.0.0.1:1/db"
    with pytest.raises(StoreUnavailable, match=r"postgresql://anna@127\.0\.0\.1:1/db: cannot connect") as no:
        await Store(Path("/nonexistent/appliance.db"), url=url).open()
    assert "secret" not in str(no.value)


async def test_a_user_with_a_password_that_owns_the_database(
    path: Path, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.add_user("anna", "p@ss:word")
    url = postgres.url("anna").replace("postgres@", "anna@")
    path.parent.mkdir()
    store = Store(path, url=url.replace("anna@", "anna:p%40ss%3Aword@"))
    await store.open()
    await store.own()
    await store.create(record := make())
    connection = writing(store)
    former, connection._connection = connection._connection, None  # as after a cut of the network
    await store.create(make())  # a user without special rights may end its own session
    assert former is not None
    former.close()
    await store.close()
    with pytest.raises(
        StoreUnavailable, match=r"anna: cannot connect to the database: .*password"
    ) as refused:
        await Store(path, url=url.replace("anna@", "anna:wrong@")).open()
    assert "wrong" not in str(refused.value)
    file = tmp_path / "passwords"
    file.write_text("*:*:anna:anna:p@ss\\:word\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    store = Store(path, url=url)
    await store.open()
    assert await store.get(record.id) == record
    await store.close()
    postgres.query("DROP DATABASE anna")


async def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"needs the package psycopg: install appliance\[postgres\]"):
        await Store(Path("/nonexistent/appliance.db"), url="postgresql://anna@127.0.0.1:1/db").open()


async def test_a_newer_database_is_refused(store: Store, path: Path) -> None:
    query(path, f"UPDATE store_format SET steps = {len(STEPS) + 1}")
    with pytest.raises(StoreError, match=rf"a newer appliance wrote the database \(format {len(STEPS) + 1}"):
        await created(path)


async def test_another_program_s_database_is_refused_and_left_alone(
    path: Path, postgres: PostgresServer
) -> None:
    postgres.query("CREATE DATABASE theirs")
    postgres.query("CREATE TABLE theirs (a INTEGER)", "theirs")
    with pytest.raises(StoreError, match=r"another program \(tables: theirs\)"):
        await Store(path, url=postgres.url("theirs")).open()
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert postgres.query(tables, "theirs") == [("theirs",)]
    postgres.query("DROP DATABASE theirs")


async def test_views_are_not_tables_of_another_program(path: Path, postgres: PostgresServer) -> None:
    postgres.query("CREATE DATABASE extended")
    postgres.query("CREATE VIEW pg_stat_statements AS SELECT 1 AS calls", "extended")
    store = Store(path, url=postgres.url("extended"))
    await store.open()
    await store.close()
    postgres.query("DROP DATABASE extended")


async def test_another_encoding_is_refused(path: Path, postgres: PostgresServer) -> None:
    postgres.query("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="the encoding of the database is LATIN1"):
        await Store(path, url=postgres.url("latin")).open()
    postgres.query("DROP DATABASE latin")


async def test_settings_of_the_database_do_not_end_sessions_or_change_transactions(
    path: Path, postgres: PostgresServer
) -> None:
    postgres.query("CREATE DATABASE tuned")
    for name, value in {
        "idle_session_timeout": "1s",
        "idle_in_transaction_session_timeout": "1s",
        "statement_timeout": "1s",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
    }.items():
        postgres.query(f"ALTER DATABASE tuned SET {name} = '{value}'")
    store = Store(path, url=postgres.url("tuned"))
    await store.open()
    run = writing(store).run
    for name in ("idle_session_timeout", "idle_in_transaction_session_timeout", "statement_timeout"):
        assert run(f"SHOW {name}").fetchone() == ("0",)
    assert await store.write(lambda _: run("SHOW transaction_isolation").fetchone()) == ("read committed",)
    await store.close()
    postgres.query("DROP DATABASE tuned")


async def test_a_failed_write_in_a_batch_does_not_undo_the_others(store: Store, path: Path) -> None:
    """PostgreSQL refuses statements after a failed one, and then rolls back at COMMIT without an error."""

    def failing(connection: sqlite3.Connection) -> None:
        try:
            connection.execute("SELECT * FROM missing")
        except sqlite3.OperationalError as error:
            raise StoreError("refused") from error

    first, last = make(), make()
    outcomes = await asyncio.gather(
        store.create(first), store.write(failing), store.create(last), return_exceptions=True
    )
    assert [type(each) for each in outcomes][::2] == [type(None), type(None)]
    assert isinstance(outcomes[1], StoreError)
    assert rows_of(path, "predictions") == 2


# Values and SQL


@pytest.mark.parametrize("text", ["a\0b", "\0", "\U0010ffff", "\U0010ffff0\0\U0010ffff1", "\U0010ffff1"])
async def test_texts_that_postgresql_refuses(store: Store, text: str) -> None:
    record = make(logs=text, error=text, model=text)
    await store.create(record)
    assert await store.get(record.id) == record
    assert await store.list("me", model=text) == [record]
    await store.audit.record(AuditEvent(action="test", object=text, owner="\\u0000"))
    (found,) = await store.audit.newest(limit=9, filters=AuditFilter(action="test"))
    assert (found.object, found.owner) == (text, "\\u0000")
    assert (await store.audit.verify()).fault is None


async def test_a_text_that_is_too_long_for_an_index_is_refused(store: Store) -> None:
    """Such a write would never succeed, so it must not be repeated."""
    with pytest.raises(UnstorableValue, match="it is too long"):
        await store.create(make(model=os.urandom(10_000).hex()))


@pytest.mark.parametrize("name", QUERIES)
async def test_every_statement_is_one_of_postgresql(store: Store, name: str) -> None:
    names = dict.fromkeys(re.findall(r":(\w+)", QUERIES[name]))
    numbers = {"limit": 1, "each": 1, **dict.fromkeys((name for name in names if name.startswith("by_")), 1)}
    count = QUERIES[name].count("?")

    def action(connection: sqlite3.Connection) -> None:
        statement = translated(QUERIES[name])
        parameters: Any = [None] * count if count else {**names, **numbers}
        connection._execute(f"EXPLAIN {statement}", parameters)  # type: ignore[attr-defined]

    await store.read(action)


async def test_times_are_grouped_by_days_of_utc(store: Store) -> None:
    """The server's time zone is another one."""
    await store.create(make(created_at=0.0).started(1.0, 0.0, None).finished(Status.SUCCEEDED, 1.5))
    assert [usage.day for usage in await store.usage.rows(["day"])] == ["1970-01-01"]


async def test_a_database_has_a_url_without_a_password(store: Store, path: Path) -> None:
    assert store.name == (url_of(path) or "").partition("?")[0]
