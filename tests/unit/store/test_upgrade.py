"""Databases of every earlier format are upgraded, and lose nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from appliance.domain.prediction import Status
from appliance.domain.token import Scope
from appliance.store import database
from appliance.store.queries import STEPS
from tests.support.store_files import created

#: Format -> rows that an appliance of that format, or a later one, has written.
ROWS = {
    1: """
    INSERT INTO predictions (
        id, model, version, owner, status, source, created_at, started_at, completed_at, stream_token,
        attempt, n, data_removed, logs, output, metrics
    ) VALUES
        ('done', 'a/b', 'v', 'me', 'succeeded', 'api', 1, 2, 3, 's1', 1, 1, 0, 'log', :text, :metrics),
        ('open', 'a/b', 'v', 'me', 'starting', 'api', 4, NULL, NULL, 's2', 0, 0, 0, '', NULL, NULL);
    INSERT INTO inputs SELECT number, :empty FROM predictions;
    INSERT INTO versions VALUES ('v', 'a/b', 1.0, :empty);
    INSERT INTO tokens (id, name, owner, digest, created_at) VALUES ('t', 'mine', 'me', 'digest', 1.0);
    """,
    2: "INSERT INTO deliveries (id, prediction, attempts, due_at) VALUES ('m', 'done', 2, 9.0);",
    5: """
    INSERT INTO files VALUES
        ('f', 'me', 'f.txt', 'text/plain', 1, 's', 'm', :empty, 1.0, NULL, NULL, 'uploads/f');
    INSERT INTO secrets VALUES ('name', 'value');
    """,
}
VALUES = {
    "text": msgspec.msgpack.encode("hello"),
    "metrics": msgspec.msgpack.encode({"predict_time": 1.5}),
    "empty": msgspec.msgpack.encode({}),
}


def schema(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    connection.close()
    return found


def make(path: Path, format: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a database of an earlier format with rows."""
    connection = database.connect(path, "normal")
    with monkeypatch.context() as patch:
        patch.setattr(database, "STEPS", STEPS[:format])
        database.upgrade(connection, path)
    for first, script in ROWS.items():
        for statement in database.statements(script) if first <= format else ():
            connection.execute(statement, VALUES)
    connection.close()


@pytest.mark.parametrize("format", range(1, len(STEPS) + 1))
async def test_every_earlier_format_is_upgraded(
    tmp_path: Path, format: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old" / "appliance.db"
    make(path, format, monkeypatch)
    store = await created(path)
    done = await store.get("done")
    assert done is not None
    assert (done.status, done.output, done.logs) == (Status.SUCCEEDED, "hello", "log")
    assert done.metrics == {"predict_time": 1.5}
    assert [record.id for record in await store.unfinished()] == ["open"]
    assert {record.id for record in await store.list("me")} == {"done", "open"}
    assert await store.run_counts() == {"a/b": 2}
    assert [row.id for row in await store.versions("a/b")] == ["v"]
    token = await store.find_token("digest")
    assert token is not None
    assert token.scope is Scope.ADMIN
    if format >= 5:
        assert await store.files.paths() == {"uploads/f"}
        assert await store.files.secret("name", "other") == "value"
    await store.close()
    await (await created(tmp_path / "new" / "appliance.db")).close()
    assert schema(path) == schema(tmp_path / "new" / "appliance.db")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
    assert connection.execute("SELECT count(*) FROM deliveries").fetchone() == (int(format >= 2),)
    if format < 8:  # what ended before there was a table of usage
        assert connection.execute("SELECT sum(succeeded), sum(predict_us) FROM usage").fetchone() == (
            1,
            1500000,
        )
    connection.close()
