"""The encrypted database: nothing is readable without the key, and everything works with it."""

from __future__ import annotations

import sqlite3
from base64 import b64encode
from pathlib import Path

import pytest

from appliance.domain.errors import EncryptionError, StoreError
from appliance.store import Store, encryption, snapshot
from appliance.store.database import connect, upgrade
from tests.support.store_files import created
from tests.unit.store.test_erasures import MARKER, erase, fill, traces

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def use(monkeypatch: pytest.MonkeyPatch, key: bytes | None) -> None:
    monkeypatch.delenv(encryption.VARIABLE, raising=False)
    if key is not None:
        monkeypatch.setenv(encryption.VARIABLE, b64encode(key).decode())


async def found_by_search(store: Store) -> int:
    return len((await store.search(None, MARKER)).predictions)


async def test_no_file_has_a_text_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, KEY)
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    assert await found_by_search(store) == 30
    record = await store.get("ada1")
    assert record is not None
    assert MARKER in record.input["prompt"]
    for text in (MARKER, "ada-token", "predictions_by_owner", "whsec_"):
        assert traces(tmp_path, text) == {}
    assert await store.compact()
    await store.close()
    for text in (MARKER, "ada-token", "predictions_by_owner", KEY.hex(), b64encode(KEY).decode()):
        assert traces(tmp_path, text) == {}
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())

    store = await created(tmp_path / "db")
    assert await found_by_search(store) == 30
    assert (await erase(store, "ada")).predictions == 30
    await store.close()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "encrypted with the key [0-9a-f]{16}: set APPLIANCE_ENCRYPTION_KEY"),
        (OTHER, "not with the given key"),
        (b"short", "a key is 32 bytes in base64 or hex: `openssl rand -base64 32` makes one"),
    ],
)
async def test_without_the_key_it_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes | None, says: str
) -> None:
    use(monkeypatch, KEY)
    await (await created(tmp_path / "db")).close()
    before = (tmp_path / "db").read_bytes()
    use(monkeypatch, key)
    with pytest.raises(EncryptionError, match=says):
        await created(tmp_path / "db")
    assert (tmp_path / "db").read_bytes() == before


async def test_the_key_may_be_in_a_file_and_in_hex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, KEY)
    await (await created(tmp_path / "db")).close()
    use(monkeypatch, None)
    (tmp_path / "key").write_text(f"{KEY.hex()}\n")
    monkeypatch.setenv(encryption.FILE_VARIABLE, str(tmp_path / "key"))
    await (await created(tmp_path / "db")).close()
    monkeypatch.setenv(encryption.FILE_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="the key cannot be read"):
        await created(tmp_path / "db")


async def test_a_key_encrypts_no_existing_database_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, None)
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    before = await store.erasures.data_of("ada")
    await store.close()
    use(monkeypatch, KEY)
    with pytest.raises(StoreError, match="run `appliance encryption enable`"):
        await created(tmp_path / "db")
    encryption.create(tmp_path / "db", KEY)  # the command was interrupted here
    with pytest.raises(StoreError, match="not encrypted yet"):
        await created(tmp_path / "db")
    encryption.encrypt(tmp_path / "db")
    assert traces(tmp_path, MARKER) == {}
    store = await created(tmp_path / "db")
    assert await store.erasures.data_of("ada") == before
    assert (await store.audit.verify()).fault is None
    assert (await erase(store, "ada")).predictions == 30
    await store.close()


async def test_a_new_operators_key_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KEY)
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    await store.close()
    database = (tmp_path / "db").read_bytes()
    assert encryption.rewrap(tmp_path / "db", OTHER) == encryption.key_id(OTHER)
    assert (tmp_path / "db").read_bytes() == database
    with pytest.raises(StoreError, match="not with the given key"):
        await created(tmp_path / "db")
    use(monkeypatch, OTHER)
    store = await created(tmp_path / "db")
    assert await found_by_search(store) == 30
    await store.close()


async def test_a_changed_data_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, KEY)
    await (await created(tmp_path / "db")).close()
    file = encryption.key_file(tmp_path / "db")
    start = file.read_text().index('"data_key":"') + 20
    text = file.read_text()
    file.write_text(f"{text[:start]}{'A' if text[start] != 'A' else 'B'}{text[start + 1 :]}")
    with pytest.raises(StoreError, match="is damaged: restore the file from a backup"):
        await created(tmp_path / "db")


@pytest.mark.parametrize("key", [None, KEY, OTHER])
async def test_without_the_file_with_the_data_key_nothing_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes | None
) -> None:
    use(monkeypatch, KEY)
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    await store.close()
    file = encryption.key_file(tmp_path / "db")
    backup = file.read_bytes()
    file.unlink()
    before = (tmp_path / "db").read_bytes()
    use(monkeypatch, key)
    says = "encrypted, but encryption.json is missing: restore that file from a backup"
    with pytest.raises(EncryptionError, match=says):
        await created(tmp_path / "db")
    with pytest.raises(EncryptionError, match=says):
        encryption.create(tmp_path / "db", KEY)
    with pytest.raises(EncryptionError, match=says):
        list(snapshot.references(tmp_path / "db"))
    assert not file.exists()
    assert (tmp_path / "db").read_bytes() == before
    file.write_bytes(backup)
    use(monkeypatch, KEY)
    store = await created(tmp_path / "db")
    assert await found_by_search(store) == 30
    await store.close()


async def test_a_copy_for_a_backup_is_encrypted_with_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KEY)
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    await store.indexed()
    (tmp_path / "copy").mkdir()
    snapshot.copy(tmp_path / "db", tmp_path / "copy" / "db", lambda done, total: None)
    await store.close()
    assert snapshot.check(tmp_path / "copy" / "db") == snapshot.FORMAT
    assert len(list(snapshot.references(tmp_path / "copy" / "db"))) == 3
    snapshot.record_in_bucket(tmp_path / "copy" / "db", ["files/uploads/a"])
    assert snapshot.in_bucket(tmp_path / "copy" / "db") == {"files/uploads/a"}
    assert traces(tmp_path / "copy", MARKER) == {}
    store = await created(tmp_path / "copy" / "db")
    assert await found_by_search(store) == 30
    await store.close()


def test_errors_are_those_of_sqlite(tmp_path: Path) -> None:
    connection = connect(tmp_path / "db", "normal", KEY)
    upgrade(connection, tmp_path / "db")
    insert = "INSERT INTO secrets VALUES ('a', 'b')"
    connection.execute(insert)
    with pytest.raises(sqlite3.IntegrityError) as refusal:
        connection.execute(insert)
    assert refusal.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CONSTRAINT
    with pytest.raises(sqlite3.IntegrityError):
        connection.executemany("INSERT INTO secrets VALUES (?, ?)", [("c", "d"), ("a", "b")])
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT x FROM y")
    connection.close()
    with pytest.raises(StoreError, match="not a database"):
        connect(tmp_path / "db", "normal", OTHER)
