"""The lease of the head of a cluster, in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from appliance.domain.errors import LeaseLost, StoreError, StoreUnavailable
from appliance.store import Lease, postgres, postgres_connection
from appliance.store import lease as store_lease
from appliance.store.encryption import FILES_KEY_ID
from appliance.store.postgres_connection import PostgresConnection
from tests.support.appliance_process import wait_for
from tests.support.postgres_server import PostgresServer
from tests.support.store_files import created, query, url_of, writer_connection

pytestmark = pytest.mark.usefixtures("postgres")

LONG = 600.0  # seconds in which a lease that is not renewed does not end during a test


@pytest.fixture
async def url(path: Path, postgres: PostgresServer) -> str:
    await (await created(path)).close()
    found = url_of(path)
    assert found is not None
    return found


@pytest.fixture
def first(url: str) -> Iterator[Lease]:
    lease = Lease(url, "one at 10.0.0.1", LONG)
    yield lease
    lease.close()


@pytest.fixture
def second(url: str) -> Iterator[Lease]:
    lease = Lease(url, "two at 10.0.0.2", LONG)
    yield lease
    lease.close()


def end_session(path: Path, lease: Lease) -> None:
    assert lease._session is not None
    query(path, f"SELECT pg_terminate_backend({lease._session[0]}, 10000)")


async def test_a_standby_knows_which_key_the_files_have(path: Path, first: Lease, second: Lease) -> None:
    assert first.acquire()
    assert second.files_key_id() is None
    store = await created(path)
    await store.files.secret(FILES_KEY_ID, "the id of a key")
    await store.close()
    assert second.files_key_id() == "the id of a key"
    assert not second.acquire()


def test_one_head_at_a_time(first: Lease, second: Lease) -> None:
    assert first.acquire()
    assert not first.renew()
    assert not second.acquire()
    assert second.holder() == "one at 10.0.0.1"
    assert first.renew()  # another machine waits
    first.close()
    wait_for(second.acquire, "the next head")
    assert second.term == first.term + 1
    assert not second.renew()


def test_a_head_that_does_not_renew_its_lease_loses_it(url: str, second: Lease) -> None:
    """The server ends the session of a machine that hangs, or that is cut off."""
    first = Lease(url, "one at 10.0.0.1", LONG)
    assert first.acquire()
    assert first._connection is not None
    assert first._connection.run("SHOW idle_session_timeout").fetchone()[0] == f"{LONG / 60:.0f}min"
    first._connection.run("SET idle_session_timeout = '10ms'")
    wait_for(second.acquire, "the next head")
    with pytest.raises(LeaseLost, match=r"two at 10\.0\.0\.2 has become the head"):
        first.renew()
    first.close()


def test_a_lost_connection_does_not_end_the_lease(path: Path, first: Lease) -> None:
    assert first.acquire()
    term = first.term
    end_session(path, first)
    wait_for(first.renew, "a renewal")
    assert not first.renew()
    assert first.term == term


def test_a_standby_whose_connection_is_lost_waits_again(path: Path, first: Lease, second: Lease) -> None:
    assert first.acquire()
    assert not second.acquire()
    query(
        path,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND pid NOT IN (pg_backend_pid(), {first._session[0] if first._session else 0})",
    )
    with pytest.raises(StoreUnavailable):
        second.acquire()
    assert not second.acquire()
    assert first.renew()


async def test_the_gateway_of_the_former_head_writes_no_more(path: Path, first: Lease, second: Lease) -> None:
    assert first.acquire()
    store = await created(path)
    await store.own(term=first.term)
    await store.check()
    first.close()
    wait_for(second.acquire, "the next head")
    with pytest.raises(StoreError, match=r"two at 10\.0\.0\.2 has become the owner"):
        await store.check()
    assert store.lost is not None
    again = await created(path)
    with pytest.raises(StoreError, match=r"two at 10\.0\.0\.2 has become the head"):
        await again.own(term=first.term)
    await again.own(term=second.term)
    await again.check()
    await again.close()
    await store.close()


async def test_an_open_transaction_of_the_former_head_does_not_stop_the_next(
    path: Path, first: Lease, second: Lease
) -> None:
    """A gateway that is cut off during a write holds the write lock until its session ends."""
    assert first.acquire()
    store = await created(path)
    await store.own(term=first.term)
    writer_connection(store).execute("BEGIN IMMEDIATE")
    first.close()
    wait_for(second.acquire, "the next head")
    await store.close()


async def test_a_standby_tries_again_while_another_program_holds_the_write_lock(
    path: Path, url: str, second: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres._SESSION, "lock_timeout", "10ms")
    with psycopg.connect(url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({postgres_connection._WRITE_LOCK}, hashtext('public'))")
        with pytest.raises(StoreUnavailable, match="another process held the write lock"):
            second.acquire()
    assert second.acquire()


def test_a_session_that_ends_during_the_takeover_gives_no_lease(
    path: Path, first: Lease, second: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection opens a new session for its next transaction, but the lease ended with the old one."""
    upgrade = postgres.upgrade

    def ended(connection: PostgresConnection, name: str) -> None:
        end_session(path, first)
        upgrade(connection, name)

    with monkeypatch.context() as patch:
        patch.setattr(postgres, "upgrade", ended)
        with pytest.raises(StoreUnavailable, match="the session that had the lease was lost"):
            first.acquire()
    assert second.acquire()
    assert not first.acquire()


def test_a_takeover_that_fails_at_its_end_is_tried_again(
    first: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_lease, "_STAND_BY_NO_MORE", "SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(StoreUnavailable):
            first.acquire()
    assert first.acquire()
    assert not first.renew()


def test_a_machine_that_cannot_use_the_database_frees_the_lease(
    first: Lease, second: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise StoreError("a newer appliance wrote the database")

    with monkeypatch.context() as patch:
        patch.setattr(postgres, "upgrade", refuses)
        with pytest.raises(StoreError, match="a newer appliance"):
            first.acquire()
    wait_for(second.acquire, "the next head")


def test_a_new_database_gets_its_tables(postgres: PostgresServer) -> None:
    postgres.query("CREATE DATABASE fresh")
    waiting, lease = (Lease(postgres.url("fresh"), name, LONG) for name in ("one", "two"))
    assert lease.acquire()
    assert not waiting.acquire()
    assert waiting.holder() == "two"
    lease.close()
    waiting.close()
    postgres.query("DROP DATABASE fresh WITH (FORCE)")


def test_the_holder_is_not_known_before_the_tables_exist(postgres: PostgresServer) -> None:
    postgres.query("CREATE DATABASE fresh")
    lease = Lease(postgres.url("fresh"), "one", LONG)
    assert lease.holder() == "another machine"
    lease.close()
    postgres.query("DROP DATABASE fresh WITH (FORCE)")


def test_a_server_that_does_not_answer() -> None:
    lease = Lease("postgresql://nobody@127.0.0.1:1/none", "one", LONG)
    with pytest.raises(StoreUnavailable):
        lease.acquire()
