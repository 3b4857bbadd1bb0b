"""Connections to PostgreSQL: one owner, locks, lost connections and interrupted commits."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from appliance.domain.errors import StoreError, StoreUnavailable
from appliance.store import Store, connections, postgres_connection, writer
from appliance.store import postgres as store_postgres
from appliance.store.postgres_connection import ConnectionLost, PostgresConnection
from appliance.store.queries import QUERIES
from tests.support.postgres_server import PostgresServer
from tests.support.store_files import created, make, query, rows_of, url_of, writer_connection

pytestmark = pytest.mark.usefixtures("postgres")


@pytest.fixture
async def store(path: Path, postgres: PostgresServer) -> AsyncIterator[Store]:
    store = await created(path)
    yield store
    await store.close()


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


async def test_an_owner_ends_its_previous_session_that_the_server_still_has(store: Store, path: Path) -> None:
    await store.own()
    connection = writer_connection(store)
    previous, connection._connection = connection._connection, None  # as after a cut of the network
    await store.create(make())
    assert rows_of(path, "predictions") == 1
    assert previous is not None
    with pytest.raises(Exception, match="terminating connection"):
        previous.execute("SELECT 1")
    previous.close()


async def test_a_process_whose_database_was_taken_over_writes_no_more(store: Store, path: Path) -> None:
    await store.own()
    connection = writer_connection(store)
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
    writer_connection(store).run("SET lock_timeout = '10ms'")
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


async def test_connections_that_read_are_opened_when_they_are_needed(store: Store, path: Path) -> None:
    sessions = (
        "SELECT application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    await store.create(record := make())
    assert query(path, sessions) == [("appliance",)]
    for _ in range(2):
        assert await store.files.get("missing") is None
        assert await store.list("me") == [record]
    assert sorted(query(path, sessions)) == [("appliance",), *[("appliance reader",)] * 2]


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
    connection, attempts = writer_connection(store), []
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
    connection = writer_connection(store)
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
    connection, execute = writer_connection(store), writer_connection(store)._execute
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
    connection, execute, lost = writer_connection(store), writer_connection(store)._execute, list[Any]()

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
    writer_connection(store)._retry_at = float("inf")
    end_sessions(path)
    with pytest.raises(StoreUnavailable):
        await store.create(make())
    other = await created(path)
    await other.own()
    writer_connection(store)._retry_at = 0.0
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
    connection = writer_connection(store)
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
    interrupt_commit(writer_connection(store), monkeypatch, committed=True)
    await store.own()
    await store.create(make())
    other = await created(path)
    with pytest.raises(StoreError, match="in use by another appliance"):
        await other.own()
    await other.close()


async def test_a_takeover_that_was_not_committed_fails(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_commit(writer_connection(store), monkeypatch, committed=False)
    with pytest.raises(StoreUnavailable):
        await store.own()
    other = await created(path)
    await other.own()
    await other.close()


async def test_writes_whose_outcome_is_not_known_are_not_repeated(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, execute = writer_connection(store), writer_connection(store)._execute

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
