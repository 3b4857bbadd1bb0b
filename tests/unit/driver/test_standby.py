"""Tests of a machine that waits until it is the head, and of the head that loses its lease."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from appliance import config as configuration
from appliance.domain.errors import EncryptionError, LeaseLost, StoreError, StoreUnavailable
from appliance.driver import standby
from appliance.store import Lease, encryption

URL = "postgresql://appliance@db.example.org/appliance"
CONFIG = """
store: {url: "%s"}
cluster: {address: 10.0.0.1}
models: [{name: test/echo, kind: echo}]
"""


class ScriptedLease(Lease):
    """A lease whose server gives the answers of a test."""

    def __init__(
        self, *answers: bool | Exception, seconds: float = 600.0, files_key_id: str | None = None
    ) -> None:
        super().__init__(URL, "one", seconds)
        self._files_key_id = files_key_id
        self._answers = list(answers)
        self.answered = threading.Event()  # all answers were given

    def _next(self, *, last: bool) -> bool:
        answer = self._answers.pop(0) if self._answers else last
        if not self._answers:
            self.answered.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def acquire(self) -> bool:
        return self._next(last=False)

    def renew(self) -> bool:
        return self._next(last=False)

    def files_key_id(self) -> str | None:
        return self._files_key_id

    def holder(self) -> str:
        return "two at 10.0.0.2"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "_POLL", 0.01)
    monkeypatch.setattr(standby, "_RENEWALS", 1_000_000)
    monkeypatch.setattr(standby, "_CHECK_INTERVAL", 0.01)


async def waited(
    lease: Lease,
    stop: asyncio.Event,
    database: Path = Path("appliance.db"),
    heads: list[str | None] | None = None,
) -> tuple[standby.HeldLease | None, list[str]]:
    """Wait for the lease. ``heads`` gets the addresses of the heads for which this machine waits."""
    shown = io.StringIO()

    async def on_waiting(head: str | None) -> None:
        if heads is not None:
            heads.append(head)

    held = await standby.wait(lease, database, stop, Console(file=shown), on_waiting)
    return held, shown.getvalue().splitlines()


async def test_the_first_machine_is_the_head_at_once() -> None:
    heads: list[str | None] = []
    held, shown = await waited(ScriptedLease(True), asyncio.Event(), heads=heads)
    assert held is not None
    held.release()
    assert (shown, heads) == ([], [])


async def test_a_standby_names_the_head_once_and_takes_over() -> None:
    held, shown = await waited(ScriptedLease(False, False, False, True), asyncio.Event())
    assert held is not None
    held.release()
    assert shown == ["standby: two at 10.0.0.2 is the head; waiting"]


async def test_a_standby_waits_for_a_server_that_does_not_answer() -> None:
    away = StoreUnavailable("the server does not answer")
    heads: list[str | None] = []
    held, shown = await waited(ScriptedLease(away, away, False, True), asyncio.Event(), heads=heads)
    assert held is not None
    assert heads == [None, "10.0.0.2"]
    held.release()
    assert shown == [
        "standby: the server does not answer: trying again",
        "standby: two at 10.0.0.2 is the head; waiting",
    ]


async def test_a_standby_does_not_end_when_a_takeover_fails() -> None:
    full = StoreError("the disk of the server is full")
    with pytest.raises(
        StoreError, match="the disk of the server is full"
    ):  # at the start: the operator sees it
        await waited(ScriptedLease(full), asyncio.Event())
    held, shown = await waited(ScriptedLease(False, full, True, seconds=0.01), asyncio.Event())
    assert held is not None
    held.release()
    assert shown[1:] == ["standby: the disk of the server is full: trying again"]


async def test_a_standby_has_begun_to_wait_after_its_first_attempt() -> None:
    """So its driver starts again after an error that it does not expect."""
    heads: list[str | None] = []
    descriptors = OSError("too many open files")
    with pytest.raises(OSError, match="too many open files"):
        await waited(ScriptedLease(descriptors), asyncio.Event(), heads=heads)
    assert heads == []
    lease = ScriptedLease(False, False, descriptors)
    with pytest.raises(OSError, match="too many open files"):
        await waited(lease, asyncio.Event(), heads=heads)
    assert heads == ["10.0.0.2"]


async def test_the_head_is_first_after_a_restart_of_the_server() -> None:
    """A standby that was connected waits as long as a lease lasts."""
    lease = ScriptedLease(False, StoreUnavailable("the connection was lost"), True)
    stop = asyncio.Event()
    waiting = asyncio.ensure_future(waited(lease, stop))
    while len(lease._answers) > 1:
        await asyncio.sleep(0.01)
    stop.set()
    held, _ = await waiting
    assert held is None
    assert lease._answers == [True]


async def test_a_standby_needs_the_key_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, own = tmp_path / "head" / "appliance.db", tmp_path / "appliance.db"
    monkeypatch.setenv(encryption.VARIABLE, "ab" * 32)
    key = encryption.files_key(head)
    assert key is not None
    lease = ScriptedLease(True, files_key_id=encryption.key_id(key))
    with pytest.raises(EncryptionError, match=r"encryption\.json is missing: .* copy encryption\.json from"):
        await waited(lease, asyncio.Event(), own)
    assert not encryption.key_file(own).exists()
    assert encryption.files_key(own) != key
    with pytest.raises(EncryptionError, match=r"encryption\.json has another data key than the files"):
        await waited(lease, asyncio.Event(), own)
    encryption.key_file(own).write_bytes(encryption.key_file(head).read_bytes())
    held, _ = await waited(lease, asyncio.Event(), own)
    assert held is not None
    held.release()


async def test_a_standby_stops() -> None:
    stop = asyncio.Event()
    stop.set()
    assert await waited(ScriptedLease(), stop) == (None, [])


async def test_the_head_notices_that_another_machine_is_the_head() -> None:
    held = standby.HeldLease(ScriptedLease(False, LeaseLost("two has become the head")))
    with pytest.raises(LeaseLost, match="two has become the head"):
        await held.watch()
    held.release()


async def test_a_head_with_a_standby_stops_when_the_server_is_silent() -> None:
    away = [StoreUnavailable("the server does not answer")] * 10_000
    held = standby.HeldLease(ScriptedLease(True, *away, seconds=0.05))
    with pytest.raises(LeaseLost, match=r"has not answered for .* s, so another machine may become"):
        await held.watch()
    held.release()


async def test_a_head_without_a_standby_continues_when_the_server_is_silent() -> None:
    away = [StoreUnavailable("the server does not answer")] * 20
    lease = ScriptedLease(False, *away, seconds=0.05)
    held = standby.HeldLease(lease)
    while not held.alone:  # until the server has answered once
        await asyncio.sleep(0.001)
    watching = asyncio.ensure_future(held.watch())
    await asyncio.to_thread(lease.answered.wait)
    assert not watching.done()
    watching.cancel()
    held.release()


async def test_the_new_head_waits_for_a_database_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standby, "RETRY_STORE", 0.0)
    errors: list[Exception] = [StoreUnavailable("no answer"), StoreUnavailable("no answer")]

    async def work() -> str:
        if errors:
            raise errors.pop()
        return "done"

    held = standby.HeldLease(ScriptedLease())
    assert await held.retry(work) == "done"
    errors.append(StoreError("the database belongs to another program"))
    with pytest.raises(StoreError, match="another program"):
        await held.retry(work)
    held.release()

    lost = standby.HeldLease(ScriptedLease(LeaseLost("two has become the head")))
    errors += [StoreUnavailable("no answer")] * 1_000_000
    with pytest.raises(LeaseLost):
        await lost.retry(work)
    lost.release()


def test_the_address_of_the_head() -> None:
    assert standby.head_address("two at 10.0.0.2") == "10.0.0.2"
    assert standby.head_address("another machine") is None


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], Any]:
    def load(more: str = "") -> Any:
        file = tmp_path / "models.yaml"
        file.write_text(CONFIG % URL + more)
        return configuration.load(file)

    return load


def test_files_that_only_one_machine_has(loaded: Callable[[str], Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    warning = standby.files_warning(loaded(""), home)
    assert warning is not None
    assert str(home / "files") in warning
    assert standby.files_warning(loaded("files: {s3: {url: 's3://bucket/files'}}\n"), home) is None
    shared = tmp_path / "shared"
    shared.mkdir()
    home.mkdir()
    (home / "files").symlink_to(shared)
    assert standby.files_warning(loaded(""), home) is None
