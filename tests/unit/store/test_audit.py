"""The audit log: its chain shows every change, and concurrent writers and crashes leave it whole."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from appliance.domain import audit
from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError
from appliance.domain.token import Scope, Token
from appliance.store import Store
from tests.support.store_files import created, query, url_of

pytestmark = pytest.mark.usefixtures("database")

TOKEN = Token(id="key", name="key", owner="me", digest="0" * 64, created_at=1.0, scope=Scope.ADMIN)

_WRITER = """
import asyncio, sys
from pathlib import Path
from appliance.domain.audit import AuditEvent
from appliance.store import Store

async def main(path, url, name, most):
    store = Store(Path(path), url=url or None)
    await store.open()
    for number in range(int(most)):
        await store.audit.record(AuditEvent(action="test.write", object=f"{name}-{number}"))
        print(number, flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await created(tmp_path / "appliance.db")
    yield store
    await store.close()


async def filled(store: Store, records: int = 5) -> None:
    for number in range(records):
        await store.audit.record(AuditEvent(action="model.load", object=f"acme/m{number}", owner="me"))


def damage(path: Path, *statements: str) -> None:
    """Change the table as somebody with access to the file can."""
    on = "" if url_of(path) is None else " ON audit"
    triggers = [f"DROP TRIGGER audit_is_not_{done}{on}" for done in ("changed", "deleted")]
    query(path, *triggers, *statements)


async def test_records_are_chained_and_filtered(store: Store) -> None:
    await filled(store)
    await store.audit.record(
        AuditEvent(action="token.create", object="x", owner="you", token="t", address="::1")
    )
    verification = await store.audit.verify()
    assert (verification.first, verification.last, verification.fault) == (1, 6, None)
    newest = await store.audit.newest(limit=2, filters={})
    assert [each.number for each in newest] == [6, 5]
    assert newest[0].previous == newest[1].hash
    for filters in ({"who": "you"}, {"who": "t"}, {"who": "::1"}, {"action": "token"}, {"object": "x"}):
        found = await store.audit.newest(limit=9, filters=filters)  # type: ignore[arg-type]
        assert [each.number for each in found] == [6], filters
    assert await store.audit.newest(limit=9, filters={"until": newest[1].at, "action": "token"}) == []
    assert len(await store.audit.newest(limit=9, filters={"since": newest[1].at})) == 2
    assert [each.number for each in await store.audit.newest(before=3, limit=9, filters={})] == [2, 1]


@pytest.mark.parametrize(
    ("statements", "number", "problem"),
    [
        (["UPDATE audit SET body = replace(body, 'm2', 'm9') WHERE number = 3"], 3, "was changed"),
        (["DELETE FROM audit WHERE number = 3"], 3, "is missing"),
        (["DELETE FROM audit WHERE number = 1"], 1, "is missing"),
        (["DELETE FROM audit WHERE number >= 4"], 4, "is missing: according to"),
        (["DELETE FROM audit"], 1, "is missing: according to"),
        (
            [
                "UPDATE audit SET number = 99 WHERE number = 2",
                "UPDATE audit SET number = 2 WHERE number = 3",
                "UPDATE audit SET number = 3 WHERE number = 99",
            ],
            2,
            "does not follow",
        ),
    ],
)
async def test_a_changed_removed_or_moved_record_is_found(
    store: Store, tmp_path: Path, statements: list[str], number: int, problem: str
) -> None:
    await filled(store)
    damage(tmp_path / "appliance.db", *statements)
    fault = (await store.audit.verify()).fault
    assert fault is not None
    assert fault.number == number
    assert fault.problem.startswith(problem)


async def test_records_after_removed_ones_hide_nothing(store: Store, tmp_path: Path) -> None:
    await filled(store)
    damage(tmp_path / "appliance.db", "DELETE FROM audit WHERE number >= 4")
    await filled(store, 6)
    fault = (await store.audit.verify()).fault
    assert fault is not None
    assert (fault.number, fault.problem.partition(":")[0]) == (5, "was replaced")


async def test_a_missing_file_of_the_newest_hash_is_found(store: Store, tmp_path: Path) -> None:
    await filled(store)
    store.head_file.unlink()
    fault = (await store.audit.verify()).fault
    assert fault is not None
    assert "is missing" in fault.problem


async def test_sql_cannot_change_or_delete_records(store: Store, tmp_path: Path) -> None:
    await filled(store)
    for statement in ("UPDATE audit SET body = '{}'", "DELETE FROM audit"):
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="audit log"):
            query(tmp_path / "appliance.db", statement)


async def test_the_chain_continues_over_deleted_records(store: Store) -> None:
    await filled(store)
    await asyncio.sleep(0.01)
    now = time.time()
    await filled(store, 2)
    assert await store.audit.remove_before(now) == 5
    assert await store.audit.remove_before(now) == 0
    verification = await store.audit.verify()
    assert (verification.first, verification.last, verification.fault) == (6, 8, None)
    (newest,) = await store.audit.newest(limit=1, filters={})
    assert (newest.action, newest.object) == ("audit.expire", "1-5")


async def test_each_sink_has_a_position_of_its_own(store: Store) -> None:
    await filled(store)
    records = await store.audit.after(0, 9)
    await store.audit.set_shipped("file", records[3])
    assert (await store.audit.shipped("file")).number == 4
    assert (await store.audit.shipped("syslog")).number == 0


async def test_a_change_and_its_record_are_one_transaction(store: Store) -> None:
    await store.add_token(TOKEN, AuditEvent(action="token.create", object="key"))
    with pytest.raises(StoreError, match="exists already"):
        await store.add_token(TOKEN, AuditEvent(action="token.create", object="key"))
    assert await store.revoke_token("other", AuditEvent(action="token.revoke", object="other")) is None
    await store.revoke_token("key", AuditEvent(action="token.revoke", object="key"))
    actions = [each.action for each in await store.audit.newest(limit=9, filters={})]
    assert actions == ["token.revoke", "token.create"]


async def test_secrets_are_not_stored(store: Store, tmp_path: Path) -> None:
    secret = "apl_" + "x" * 40
    after = {"models": [{"environment": {"HF_TOKEN": "hf_abcdefghijk"}}], "url": "https://me:pw@example.org/"}
    await store.audit.record(AuditEvent(action="a", object=f"/admin/tokens/{secret}", after=after))
    (record,) = await store.audit.newest(limit=1, filters={})
    assert record.object == f"/admin/tokens/{audit.HIDDEN}"
    for text in (secret, "hf_abcdefghijk", "me:pw"):
        assert text not in record.body


async def test_concurrent_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    store = await created(path)
    command = [sys.executable, "-c", _WRITER, str(path), url_of(path) or ""]
    writers = [
        subprocess.Popen([*command, name, "20"], stdout=subprocess.DEVNULL) for name in ("first", "second")
    ]
    await asyncio.gather(
        *(store.audit.record(AuditEvent(action="test.write", object=f"own-{number}")) for number in range(20))
    )
    for writer in writers:
        assert await asyncio.to_thread(writer.wait) == 0
    verification = await store.audit.verify()
    await store.close()
    assert (verification.first, verification.last, verification.fault) == (1, 60, None)


async def test_a_killed_process_leaves_a_valid_chain(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    await (await created(path)).close()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), url_of(path) or "", "x", "1000000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    confirmed = 0
    while confirmed < 50:
        confirmed = int(await asyncio.to_thread(writer.stdout.readline))
    os.kill(writer.pid, signal.SIGKILL)
    with writer.stdout:
        rest = await asyncio.to_thread(writer.stdout.read)
    writer.wait()
    store = await created(path)
    verification = await store.audit.verify()
    await store.close()
    written = [int(line) for line in rest.splitlines() if line.strip()]
    assert verification.fault is None
    assert verification.last >= max([confirmed, *written]) + 1
