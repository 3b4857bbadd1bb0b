"""The gateway's audit log: limits records of refused requests, deletes old records, and sends records on."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import time
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import msgspec

from appliance.config import AuditConfig
from appliance.domain.audit import Act, AuditRecord
from appliance.domain.errors import StoreError
from appliance.store import Store

_log = logging.getLogger(__name__)

#: Who sent the request that is handled now, also for tasks that the request has started.
CALLER: Final[ContextVar[Act | None]] = ContextVar("caller", default=None)

#: Refused requests that are recorded each minute: of one address, and in all. Others are only counted.
MOST_OF_ADDRESS: Final = 10
MOST: Final = 30
MINUTE: Final = 60.0
_COUNTED: Final = 10  # addresses with a count of their own
_DAY: Final = 86400.0
_POLL: Final = 2.0  # seconds between searches for new records; commands write records too
_BATCH: Final = 200
#: RFC 5424: facility 13 is the log audit, severity 5 a notice.
_PRIORITY: Final = 13 * 8 + 5


class RefusedLimit:
    """Decides which refused requests are recorded, so that a flood of them does not fill the disk."""

    def __init__(self) -> None:
        self._began = 0.0
        self._recorded: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def take(self, address: str | None, now: float) -> tuple[bool, list[Act]]:
        """Return whether to record a request of ``address`` at ``now``.

        Also return records that count the requests that were left out in the minute before.
        """
        before = self.expired(now)
        key = network(address)
        if self._recorded[key] < MOST_OF_ADDRESS and self._recorded.total() < MOST:
            self._recorded[key] += 1
            return True, before
        known = key in self._left_out or len(self._left_out) < _COUNTED
        self._left_out[key if known else "others"] += 1
        return False, before

    def expired(self, now: float) -> list[Act]:
        """Begin another minute if this one is over; return records of the requests that were only counted."""
        if now - self._began < MINUTE:
            return []
        left_out = self._left_out
        self._began, self._recorded, self._left_out = now, Counter(), Counter()
        return [
            Act(action="request", object="more refused requests", outcome="denied", address=key, count=count)
            for key, count in left_out.items()
        ]

    def close(self) -> list[Act]:
        return self.expired(self._began + MINUTE)


def network(address: str | None) -> str:
    """Return the address, or the network of an IPv6 address, all of which one client may use."""
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address or "")
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return address or "unknown"


class AuditLog:
    """The audit log; used on the gateway's event loop only."""

    def __init__(self, store: Store, config: AuditConfig) -> None:
        self._store = store
        self._config = config
        self._refused = RefusedLimit()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def change(self, config: AuditConfig) -> None:
        self._config = config

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._record_all(self._refused.close())
        with contextlib.suppress(OSError, StoreError):  # the next start sends the rest
            await self._ship()

    async def record(self, act: Act) -> None:
        """Store a record.

        Raises:
            StoreError: the record is not stored.
        """
        await self._store.audit.record(act)

    async def refuse(self, act: Act) -> None:
        """Store the record of a refused request, or count it if there are too many. Failures are logged."""
        recorded, before = self._refused.take(act.address, time.monotonic())
        await self._record_all([*before, act] if recorded else before)

    def applied(self, before: dict[str, object], after: dict[str, object]) -> None:
        """Record a change of the config in effect, by the caller of the request that caused it."""
        caller = CALLER.get() or Act(action="", owner="appliance")
        act = msgspec.structs.replace(caller, action="config.apply", object="models.yaml")
        act = msgspec.structs.replace(act, before=before, after=after)
        self._store.audit.record(act)

    async def _record_all(self, acts: list[Act]) -> None:
        for act in acts:
            try:
                await self._store.audit.record(act)
            except StoreError as error:
                _log.error("a refused request could not be recorded in the audit log: %s", error)
                return

    async def _run(self) -> None:
        expired = 0.0
        while True:
            await self._record_all(self._refused.expired(time.monotonic()))
            try:
                if self._config.retention is not None and time.monotonic() - expired > _DAY / 24:
                    # Whole days, so that there is at most one record a day about deleted records.
                    await self._store.audit.remove_before(
                        (time.time() - self._config.retention) // _DAY * _DAY
                    )
                    expired = time.monotonic()
                await self._ship()
                self._failing = False
            except (OSError, StoreError) as error:
                if not self._failing:
                    _log.error("audit records could not be sent or deleted, retrying: %s", error)
                self._failing = True
            await asyncio.sleep(_POLL)

    async def _ship(self) -> None:
        """Send the records that were not sent yet, in order, each at least once.

        Raises:
            OSError: the file cannot be written, or the syslog server cannot be reached.
        """
        file, syslog = self._config.file, self._config.syslog
        if file is None and syslog is None:
            return
        sent = (await self._store.audit.shipped()).number
        while records := await self._store.audit.after(sent, _BATCH):
            if file is not None:
                await asyncio.to_thread(append_lines, file, records)
            if syslog is not None:
                await asyncio.to_thread(send_to_syslog, syslog, records)
            await self._store.audit.set_shipped(records[-1])
            sent = records[-1].number


def json_line(record: AuditRecord) -> str:
    """Return a record with its hashes as a line of JSON, without a line break."""
    body, (previous, hash) = record.body.removesuffix("}"), (record.previous, record.hash)
    return f'{body},"previous":"{previous}","hash":"{hash}"}}'


def append_lines(file: Path, records: list[AuditRecord]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write("".join(f"{json_line(record)}\n" for record in records))


def send_to_syslog(address: str, records: list[AuditRecord]) -> None:
    """Send records to ``udp://host:port`` or to a Unix socket, as messages of RFC 5424."""
    messages = [syslog_message(record) for record in records]
    if not address.startswith("udp://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
            unix.settimeout(5.0)
            unix.connect(address)
            for message in messages:
                unix.send(message)
        return
    host, _, port = address.removeprefix("udp://").rpartition(":")
    family, kind, protocol, _, target = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as udp:
        for message in messages:
            udp.sendto(message, target)


def syslog_message(record: AuditRecord) -> bytes:
    host = socket.gethostname() or "-"
    head = f"<{_PRIORITY}>1 {record.at} {host} appliance {os.getpid()} {record.action[:32] or '-'} -"
    return f"{head} {json_line(record)}".encode()
