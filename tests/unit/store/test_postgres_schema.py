"""The tables on PostgreSQL are those on SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.store import Store
from tests.support.postgres_server import PostgresServer
from tests.support.store_files import created, query

#: Tables that only PostgreSQL needs.
OWN = {"store_format", "store_owner", "store_writers"}


@pytest.mark.usefixtures("postgres")
async def test_both_schemas_have_the_same_names(tmp_path: Path, postgres: PostgresServer) -> None:
    path = tmp_path / "a" / "appliance.db"
    server, file = await created(path), Store(tmp_path / "b" / "appliance.db", durability="normal")
    await file.open()

    async def names(statement: str) -> set[tuple[str, ...]]:
        return set(await file.read(lambda connection: connection.execute(statement).fetchall()))

    columns = await names(
        "SELECT tables.name, columns.name FROM sqlite_schema AS tables,"
        " pragma_table_xinfo(tables.name) AS columns"
        " WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite_%'"
        " AND columns.name <> 'rowid'"
    )
    found = query(
        path,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND column_name <> 'rowid'",  # SQLite has one in each table
    )
    assert {row for row in found if row[0] not in OWN} == columns | {("audit", "address")}
    indexes = await names("SELECT tbl_name, name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")
    found = query(
        path,
        "SELECT tablename, indexname FROM pg_indexes WHERE schemaname = 'public'"
        " AND indexname NOT LIKE '%_pkey' AND indexname NOT LIKE '%_key'",
    )
    assert {row for row in found if row[0] != "unindexed_predictions"} == indexes
    triggers = await names("SELECT tbl_name, name FROM sqlite_schema WHERE type = 'trigger'")
    found = query(path, "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal")
    # One trigger on PostgreSQL does what three do on SQLite.
    predictions = {"prediction_is_deleted", "deliveries_follow", "inputs_follow", "deletions_are_recorded"}
    assert {row for row in found if row[1] not in predictions} == {
        row for row in triggers if row[1] not in predictions
    }
    await server.close()
    await file.close()
