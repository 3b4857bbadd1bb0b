"""The gateway's audit log: limits records of refused requests, deletes old records, and sends records on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.config import AuditConfig
from appliance.domain import access
from appliance.domain.audit import AuditEvent, AuditRecord, canonical
from appliance.domain.errors import StoreError
from appliance.store import Store
from appliance.store.audit import Sink

_log = logging.getLogger(__name__)

#: Who sent the request that is handled now, also for tasks that the request has started.
CALLER: Final[ContextVar[AuditEvent | None]] = ContextVar("caller", default=None)

#: Refused requests that are recorded each minute: of one address, and in all. Others are only counted.
MAX_OF_ADDRESS: Final = 10
MOST: Final = 30
MINUTE: Final = 60.0
#: Every token may ask for these, as often as it likes: each is recorded once a minute for an address.
REPEATED: Final = frozenset({"session.sign_in", "session.sign_out"})
MAX_KNOWN: Final = 1000
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

    def take(self, address: str | None, now: float) -> tuple[bool, list[AuditEvent]]:
        """Return whether to record a request of ``address`` at ``now``.

        Also return records that count the requests that were left out in the minute before.
        """
        before = self.expired(now)
        key = network(address)
        if self._recorded[key] < MAX_OF_ADDRESS and self._recorded.total() < MOST:
            self._recorded[key] += 1
            return True, before
        known = key in self._left_out or len(self._left_out) < _COUNTED
        self._left_out[key if known else "others"] += 1
        return False, before

    def expired(self, now: float) -> list[AuditEvent]:
        """Begin another minute if this one is over; return records of the requests that were only counted."""
        if now - self._began < MINUTE:
            return []
        left_out = self._left_out
        self._began, self._recorded, self._left_out = now, Counter(), Counter()
        return [
            AuditEvent(
                action="request", object="more refused requests", outcome="denied", address=key, count=count
            )
            for key, count in left_out.items()
        ]

    def close(self) -> list[AuditEvent]:
        return self.expired(self._began + MINUTE)


def network(address: str | None) -> str:
    """Return the address, or the network of an IPv6 address, all of which one client may use."""
    return access.client_network(address) if address else "unknown"


class Repeats:
    """Finds what was asked already within the last minute, of the newest ``MAX_KNOWN``."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], float] = {}  # when each was recorded, oldest first

    def seen(self, key: tuple[str, ...], now: float) -> bool:
        if now - self._known.get(key, -MINUTE) < MINUTE:
            return True
        self._known.pop(key, None)
        self._known[key] = now
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return False

    def forget(self, key: tuple[str, ...]) -> None:
        self._known.pop(key, None)


class AuditLog:
    """The audit log; used on the gateway's event loop only."""

    def __init__(self, store: Store, config: AuditConfig) -> None:
        self._store = store
        self._config = config
        self._refused = RefusedLimit()
        self._repeats = Repeats()
        self._task: asyncio.Task[None] | None = None
        self._failing: set[str] = set()  # what failed last time, so that it is logged once
        self._expired = 0.0

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
        await self._ship()  # the next start sends what fails now

    async def record(self, event: AuditEvent) -> None:
        """Store a record, except of a sign-in or sign-out that was recorded within the last minute.

        Raises:
            StoreError: the record is not stored.
        """
        key = (event.token or "", event.action, network(event.address))
        if event.action in REPEATED and self._repeats.seen(key, time.monotonic()):
            return
        try:
            await self._store.audit.record(event)
        except StoreError:
            self._repeats.forget(key)
            raise

    async def record_refusal(self, event: AuditEvent) -> None:
        """Store the record of a refused request, or count it if there are too many. Failures are logged."""
        recorded, before = self._refused.take(event.address, time.monotonic())
        await self._record_all([*before, event] if recorded else before)

    def record_config_change(self, before: dict[str, object], after: dict[str, object]) -> None:
        """Record a change of the config in effect, by the caller of the request that caused it."""
        caller = CALLER.get() or AuditEvent(action="", owner="appliance")
        event = msgspec.structs.replace(caller, action="config.apply", object="models.yaml")
        event = msgspec.structs.replace(event, before=before, after=after)
        self._store.audit.record(event)

    async def _record_all(self, events: list[AuditEvent]) -> None:
        for event in events:
            try:
                await self._store.audit.record(event)
            except StoreError as error:
                _log.error("a refused request could not be recorded in the audit log: %s", error)
                return

    async def _run(self) -> None:
        while True:
            await self._record_all(self._refused.expired(time.monotonic()))
            await self._expire()
            await self._ship()
            await asyncio.sleep(_POLL)

    async def _expire(self) -> None:
        if self._config.retention is None or time.monotonic() - self._expired <= _DAY / 24:
            return
        with self._logged("old audit records could not be deleted"):
            # Whole days, so that there is at most one record a day about deleted records.
            await self._store.audit.remove_before((time.time() - self._config.retention) // _DAY * _DAY)
            self._expired = time.monotonic()

    async def _ship(self) -> None:
        """Send the records that were not sent yet to the file and to syslog, in order, each at least once."""
        file, syslog = self._config.file, self._config.syslog
        sinks: dict[Sink, Callable[[list[AuditRecord]], int]] = {}
        if file is not None:
            sinks["file"] = partial(append_lines, file)
        if syslog is not None:
            sinks["syslog"] = partial(send_to_syslog, syslog)
        await asyncio.gather(*(self._ship_to(sink, send) for sink, send in sinks.items()))

    async def _ship_to(self, sink: Sink, send: Callable[[list[AuditRecord]], int]) -> None:
        with self._logged(f"audit records could not be sent to the {sink} of the section audit"):
            sent = (await self._store.audit.shipped(sink)).number
            while records := await self._store.audit.after(sent, _BATCH):
                last = records[await asyncio.to_thread(send, records) - 1]
                await self._store.audit.set_shipped(sink, last)
                sent = last.number

    @contextlib.contextmanager
    def _logged(self, failure: str) -> Iterator[None]:
        """Log the first of several failures of the same work, which is tried again."""
        try:
            yield
            self._failing.discard(failure)
        except (OSError, StoreError) as error:
            if failure not in self._failing:
                _log.error("%s, retrying: %s", failure, error)
            self._failing.add(failure)


def json_line(record: AuditRecord) -> str:
    """Return a record with its hashes as a line of JSON, without a line break."""
    body, (previous, hash) = record.body.removesuffix("}"), (record.previous, record.hash)
    return f'{body},"previous":"{previous}","hash":"{hash}"}}'


def append_lines(file: Path, records: list[AuditRecord]) -> int:
    """Append records to a file; return how many.

    Raises:
        OSError: the file cannot be written.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write("".join(f"{json_line(record)}\n" for record in records))
    return len(records)


def send_to_syslog(address: str, records: list[AuditRecord]) -> int:
    """Send records to ``udp://host:port`` or to a Unix socket, as messages of RFC 5424.

    Return how many were sent before an error.

    Raises:
        OSError: none was sent.
    """
    if not address.startswith("udp://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
            unix.settimeout(5.0)
            unix.connect(address)
            return _send_all(unix.send, records)
    host, _, port = address.removeprefix("udp://").rpartition(":")
    family, kind, protocol, _, target = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as udp:
        return _send_all(lambda message: udp.sendto(message, target), records)


def _send_all(send: Callable[[bytes], int], records: list[AuditRecord]) -> int:
    for sent, record in enumerate(records):
        try:
            _send(send, record)
        except OSError:
            if sent:
                return sent
            raise
    return len(records)


def _send(send: Callable[[bytes], int], record: AuditRecord) -> None:
    """Send a record; if it is too long for one message, a copy without ``before`` and ``after``."""
    try:
        send(syslog_message(record))
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        send(syslog_message(shortened(record)))


def shortened(record: AuditRecord) -> AuditRecord:
    """Return a record whose body has no ``before`` and ``after``, so that it does not match its hash."""
    fields = msgspec.json.decode(record.body, type=dict[str, Any])
    left_out = [key for key in ("before", "after") if fields.pop(key, None) is not None]
    body = canonical({**fields, "left_out": left_out})
    return msgspec.structs.replace(record, body=body, before=None, after=None)


def syslog_message(record: AuditRecord) -> bytes:
    host = socket.gethostname() or "-"
    head = f"<{_PRIORITY}>1 {record.at} {host} appliance {os.getpid()} {record.action[:32] or '-'} -"
    return f"{head} {json_line(record)}".encode()
