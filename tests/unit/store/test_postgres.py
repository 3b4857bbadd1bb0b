"""The store on PostgreSQL: backups, what it refuses, and its SQL."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError, StoreUnavailable, UnstorableValue
from appliance.domain.prediction import Status
from appliance.store import AuditFilter, Store
from appliance.store.postgres import public_url
from appliance.store.postgres_queries import STEPS, translated
from appliance.store.queries import QUERIES
from tests.support.postgres_server import PostgresServer
from tests.support.store_files import created, make, query, rows_of, url_of, writer_connection

pytestmark = pytest.mark.usefixtures("postgres")


@pytest.fixture
async def store(path: Path, postgres: PostgresServer) -> AsyncIterator[Store]:
    store = await created(path)
    yield store
    await store.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unchanged(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    """One store for all tests that change nothing, because a database for each test takes 0.2 s of CPU."""
    server.query("CREATE DATABASE unchanged")
    store = Store(tmp_path_factory.mktemp("home") / "appliance.db", url=server.url("unchanged"))
    await store.open()
    yield store
    await store.close()
    server.query("DROP DATABASE unchanged WITH (FORCE)")


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
    connection = writer_connection(store)
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
    run = writer_connection(store).run
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


async def test_a_time_that_is_no_number_is_refused(store: Store) -> None:
    with pytest.raises(UnstorableValue, match="NaN"):
        await store.create(make(created_at=float("nan")))


async def test_a_text_that_is_too_long_for_an_index_is_refused(store: Store) -> None:
    """Such a write would never succeed, so it must not be repeated."""
    with pytest.raises(UnstorableValue, match="it is too long"):
        await store.create(make(model=os.urandom(10_000).hex()))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", QUERIES)
async def test_every_statement_is_one_of_postgresql(unchanged: Store, name: str) -> None:
    names = dict.fromkeys(re.findall(r":(\w+)", QUERIES[name]))
    numbers = {"limit": 1, "each": 1, **dict.fromkeys((name for name in names if name.startswith("by_")), 1)}
    count = QUERIES[name].count("?")

    def action(connection: sqlite3.Connection) -> None:
        statement = translated(QUERIES[name])
        parameters: Any = [None] * count if count else {**names, **numbers}
        connection._execute(f"EXPLAIN {statement}", parameters)  # type: ignore[attr-defined]

    await unchanged.read(action)


async def test_times_are_grouped_by_days_of_utc(store: Store) -> None:
    """The server's time zone is another one."""
    await store.create(make(created_at=0.0).started(1.0, 0.0, None).finished(Status.SUCCEEDED, 1.5))
    assert [usage.day for usage in await store.usage.rows(["day"])] == ["1970-01-01"]


async def test_a_database_has_a_url_without_a_password(store: Store, path: Path) -> None:
    assert store.name == (url_of(path) or "").partition("?")[0]
