"""The audit log is sent to a file and to syslog, and old records are deleted."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.config import AuditConfig
from appliance.domain.audit import AuditEvent
from appliance.observability.audit_log import AuditLog
from appliance.store import Store
from tests.support.store_files import created


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await created(tmp_path / "appliance.db")
    yield store
    await store.close()


async def test_each_record_is_appended_to_the_file_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    for number in range(3):
        log = AuditLog(store, AuditConfig(file=file))
        await log.record(AuditEvent(action="model.load", object=f"m{number}", owner="me"))
        await log.close()  # sends what is left
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["object"] for line in lines] == ["m0", "m1", "m2"]
    assert lines[2]["previous"] == lines[1]["hash"]
    assert file.stat().st_mode & 0o077 == 0


async def test_records_are_sent_to_syslog(store: Store, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        unix.bind(path)
        udp.bind(("127.0.0.1", 0))
        for server, address in ((unix, path), (udp, f"udp://127.0.0.1:{udp.getsockname()[1]}")):
            server.settimeout(30)
            log = AuditLog(store, AuditConfig(syslog=address))
            await log.record(AuditEvent(action="model.load", object="m", owner="me"))
            await log.close()
            message = (await asyncio.to_thread(server.recv, 9000)).decode()
            head, _, body = message.partition(" - {")
            assert head.startswith("<109>1 20")
            assert head.endswith(" model.load")
            assert json.loads("{" + body)["object"] == "m"


async def test_an_unreachable_file_loses_no_record(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "later" / "audit.jsonl"
    log = AuditLog(store, AuditConfig(file=file))
    await log.record(AuditEvent(action="model.load", object="m"))
    await log.close()
    file.parent.mkdir()
    await AuditLog(store, AuditConfig(file=file)).close()
    assert json.loads(file.read_text())["object"] == "m"


async def test_an_unreachable_syslog_does_not_repeat_records_in_the_file(
    store: Store, tmp_path: Path
) -> None:
    file, path = tmp_path / "audit.jsonl", str(tmp_path / "log")
    for number in range(3):
        log = AuditLog(store, AuditConfig(file=file, syslog=path))
        await log.record(AuditEvent(action="model.load", object=f"m{number}"))
        await log.close()
    assert [json.loads(line)["object"] for line in file.read_text().splitlines()] == ["m0", "m1", "m2"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(30)
        await AuditLog(store, AuditConfig(file=file, syslog=path)).close()
        received = [(await asyncio.to_thread(server.recv, 9000)).decode() for _ in range(3)]
    assert [json.loads("{" + each.partition(" - {")[2])["object"] for each in received] == ["m0", "m1", "m2"]
    assert len(file.read_text().splitlines()) == 3


async def test_a_record_that_is_too_long_for_syslog_is_sent_without_its_values(
    store: Store, tmp_path: Path
) -> None:
    path = str(tmp_path / "log")
    long = {f"k{number}": "x" * 2000 for number in range(150)}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        unix.bind(path)
        udp.bind(("127.0.0.1", 0))
        for server, address in ((unix, path), (udp, f"udp://127.0.0.1:{udp.getsockname()[1]}")):
            server.settimeout(30)
            log = AuditLog(store, AuditConfig(syslog=address))
            await log.record(AuditEvent(action="config.apply", object="long", after=long))
            await log.record(AuditEvent(action="config.apply", object="short", after={"a": 1}))
            await log.close()
            received = [(await asyncio.to_thread(server.recv, 9000)).decode() for _ in range(2)]
            first, second = (json.loads("{" + each.partition(" - {")[2]) for each in received)
            assert (first["object"], first["left_out"], first.get("after")) == ("long", ["after"], None)
            assert (second["object"], second["after"]) == ("short", {"a": 1})
            assert second["previous"] == first["hash"]


@pytest.mark.parametrize("address", ["tcp://x:1", "udp://x", "udp://x:0", "udp://x:99999", "dev/log", "/"])
def test_other_addresses_of_syslog_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="udp://host:port"):
        AuditConfig(syslog=address)
