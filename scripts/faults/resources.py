"""Cases in which the machine, not a process, fails: disk, clock, weights, database, file descriptors."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx

from scripts.faults.ledger import Tally
from scripts.faults.testbed import START, Caller, Testbed
from tests.support import tiny_models

_DISK: Final = "256m"
_FULL_SECONDS: Final = 10.0
_DESCRIPTORS: Final = 256
_MANY: Final = 20
_MASKED: Final = "the [MASK] sat"
_TINY: Final = """
  - {name: test/tiny, kind: transformers, source: {path: %s}, options: {task: fill-mask}}
"""


class Skipped(Exception):
    """The machine lacks something that the case needs; the text says what."""


def disk_full(folder: Path, patience: float, tally: Tally) -> float | None:
    """The disk of the data folder is full while predictions are made, and then has space again."""
    with _small_disk(folder) as disk:
        testbed = Testbed(disk / "home", patience=patience)
        try:
            testbed.start()
            with Caller(testbed), testbed.client() as client:
                _fill(disk / "ballast")
                until = time.monotonic() + _FULL_SECONDS
                said: set[int] = set()
                while time.monotonic() < until:
                    content = os.urandom(100_000)
                    try:
                        reply = client.post("/v1/files", files={"content": content})
                    except httpx.HTTPError as error:
                        tally.note(f"an upload was not answered ({type(error).__name__})")
                        continue
                    said.add(reply.status_code)
                    if reply.status_code == 201:
                        testbed.ledger.uploaded(reply.json()["id"], content)
                    testbed.create(client, "test/slow", "full", text="full")
                (disk / "ballast").unlink()
                seconds = testbed.recovered(time.monotonic())
            tally.note(f"uploads got {', '.join(map(str, sorted(said)))} while the disk was full")
            testbed.check(tally, well=seconds is not None)
            return seconds
        finally:
            testbed.close()


def clock_forward(folder: Path, patience: float, tally: Tally) -> float | None:
    """The clock of the machine jumps an hour ahead while predictions run."""
    return _clock(folder, patience, tally, 3600)


def clock_back(folder: Path, patience: float, tally: Tally) -> float | None:
    """The clock of the machine jumps an hour back while predictions run."""
    return _clock(folder, patience, tally, -3600)


def _clock(folder: Path, patience: float, tally: Tally, jump: int) -> float | None:
    """Run the case with a wall clock that jumps by ``jump`` seconds."""
    library, shift = folder / "clock.so", folder / "shift"
    _compile(Path(__file__).with_name("clock.c"), library)
    shift.write_bytes(struct.pack("l", 0))
    further = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    testbed = Testbed(folder / "home", patience=patience, further=further)
    try:
        testbed.start()
        with Caller(testbed), testbed.client() as client:
            for number in range(_MANY):
                testbed.create(client, "test/echo", f"t {number}", text=f"t {number}", delay=1)
            with shift.open("r+b") as written:  # in place: the processes have mapped this file
                written.write(struct.pack("l", jump))
            for number in range(_MANY):
                testbed.create(client, "test/echo", f"u {number}", text=f"u {number}", delay=1)
            seconds = testbed.recovered(time.monotonic())
            newest = client.get("/v1/predictions").json()["results"]
            shifts = [datetime.fromisoformat(each["created_at"]).timestamp() - time.time() for each in newest]
            tally.note(f"predictions were created {max(shifts, key=abs):+.0f} s from the true time")
        testbed.check(tally, well=seconds is not None)
        return seconds
    finally:
        testbed.close()


def _compile(source: Path, library: Path) -> None:
    """Compile a C file to a shared library.

    Raises:
        Skipped: there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skipped("there is no C compiler (Debian's package gcc)")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)


def weights_missing(folder: Path, patience: float, tally: Tally) -> float | None:
    """The weights of a model are missing when the model is loaded again, and when the appliance restarts."""
    return _weights(folder, patience, tally, lambda file: file.unlink())


def weights_changed(folder: Path, patience: float, tally: Tally) -> float | None:
    """The weights of a model are truncated after the model was loaded."""
    return _weights(folder, patience, tally, lambda file: os.truncate(file, file.stat().st_size // 2))


def _weights(folder: Path, patience: float, tally: Tally, damage: Callable[[Path], None]) -> float | None:
    weights = folder / "weights"
    tiny_models.fill_mask(weights)
    file = weights / "model.safetensors"
    kept = Path(shutil.copy(file, folder / "kept"))
    testbed = Testbed(folder / "home", patience=patience, models=_TINY % weights)
    try:
        testbed.start()
        with testbed.client(timeout=120) as client:
            testbed.create(client, "test/tiny", None, text=_MASKED)
            with Caller(testbed):
                damage(file)
                client.post("/admin/models/test/tiny/unload")
                for _ in range(3):
                    testbed.create(client, "test/tiny", None, text=_MASKED)
                well = testbed.recovered(time.monotonic()) is not None
            testbed.check(tally, well=well)
            testbed.appliance.stop()
            testbed.appliance.start(START)  # the other models are served
            tally.note("starts without weights" if testbed.serves() else "serves nothing without weights")
            shutil.copy(kept, file)
            testbed.appliance.stop()
            testbed.appliance.start(START)
        since = time.monotonic()
        with testbed.client(timeout=120) as client:
            testbed.create(client, "test/tiny", None, text=_MASKED)
        seconds = testbed.recovered(since)
        testbed.check(tally, well=seconds is not None)
        return seconds
    finally:
        testbed.close()


def database_empty(folder: Path, patience: float, tally: Tally) -> float | None:
    """The database file is empty at the start, as some file systems leave it after a power failure.

    The appliance should refuse to start and name the file. A copy of the file then restores the data.
    """
    testbed = Testbed(folder / "home", patience=patience)
    try:
        testbed.start()
        with testbed.client() as client:
            for number in range(5):
                testbed.create(client, "test/echo", f"before {number}", text=f"before {number}")
        time.sleep(1)
        testbed.appliance.stop()
        database = testbed.appliance.home / "appliance.db"
        kept = Path(shutil.copy(database, folder / "kept"))
        os.truncate(database, 0)
        try:
            testbed.appliance.start(START)
        except AssertionError:
            last = testbed.appliance.output.read_text().strip().splitlines()[-1:]
            tally.note(f"refused to start: {' '.join(last)}")
        else:
            tally.note("started with an empty database")
            testbed.appliance.stop()
        shutil.copy(kept, database)
        since = time.monotonic()
        testbed.appliance.start(START)
        seconds = testbed.recovered(since)
        testbed.check(tally, well=seconds is not None)
        return seconds
    finally:
        testbed.close()


def few_descriptors(folder: Path, patience: float, tally: Tally) -> float | None:
    """Each process may open at most 256 files, and 300 idle connections are opened."""
    if shutil.which("prlimit") is None:
        raise Skipped("prlimit is not installed (Debian's package util-linux)")
    limit = ("prlimit", f"--nofile={_DESCRIPTORS}:{_DESCRIPTORS}")
    testbed = Testbed(folder / "home", patience=patience, prefix=limit)
    try:
        try:
            testbed.start()
        except AssertionError:
            last = testbed.appliance.output.read_text().strip().splitlines()[-1:]
            tally.note(f"did not start: {' '.join(last)}")
            return None
        with contextlib.ExitStack() as stack:
            stack.enter_context(Caller(testbed))
            for _ in range(300):
                connection = stack.enter_context(socket.socket())
                connection.settimeout(5)
                with contextlib.suppress(OSError):
                    connection.connect(("127.0.0.1", testbed.appliance.port))
            with testbed.client(timeout=10) as client:
                for number in range(_MANY):
                    testbed.create(client, "test/echo", f"fd {number}", text=f"fd {number}")
        seconds = testbed.recovered(time.monotonic())
        testbed.check(tally, well=seconds is not None)
        return seconds
    finally:
        testbed.close()


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs.

    Raises:
        Skipped: this process may not mount file systems.
    """
    disk = folder / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        raise Skipped("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        raise Skipped(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"\1" * 65_536)
