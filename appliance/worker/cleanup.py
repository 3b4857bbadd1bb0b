"""What engine hosts leave behind: processes that a crash has orphaned, temporary files, shared memory.

A mark is the file ``<run_dir>/hosts/<pid>``. It holds the process's start time and the boot it belongs to: a
process id alone may long be someone else's. A host keeps temporary files, sockets among them, in a folder
that names its appliance and itself, and gives its shared memory such names: libraries tidy up when they end,
and hosts are killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

_PATIENCE: Final = 5.0  # seconds for killed processes to let go of memory and ports
_SHARED: Final = Path("/dev/shm")  # noqa: S108 - where the kernel keeps shared memory that has a name
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class PidFile(msgspec.Struct, frozen=True):
    """What identifies one engine host beside its process id."""

    start: int  # clock ticks since boot, as in /proc/<pid>/stat
    boot: str
    model: str


class _Process(NamedTuple):
    state: str
    group: int
    session: int
    start: int  # clock ticks since boot


def folder(run_dir: Path) -> Path:
    """Where the marks of an appliance are."""
    return run_dir / "hosts"


def write(marks: Path, model: str) -> None:
    """Mark the calling process as an engine host of ``model``."""
    own = _look(os.getpid())
    if own is None:
        raise RuntimeError("a process does not find itself in /proc")
    marks.mkdir(parents=True, exist_ok=True)
    mark = PidFile(own.start, _boot(), model)
    (marks / str(os.getpid())).write_bytes(msgspec.json.encode(mark))


def own_places(marks: Path) -> None:
    """Have the calling process, a host, keep what is temporary where it is found when it is gone."""
    name = f"{_prefix(marks)}{os.getpid()}-"
    folder = Path(tempfile.gettempdir()) / name
    shutil.rmtree(folder, ignore_errors=True)  # of a host with the same number, if the machine has crashed
    folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # it has been looked up in the zygote
    # Names are given by the standard library, for vLLM's workers among others. Linux takes longer ones.
    shared_memory._SHM_NAME_PREFIX = f"/{name}"  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
    shared_memory._SHM_SAFE_NAME_LENGTH = len(name) + 17  # type: ignore[attr-defined]  # noqa: SLF001 - as above


def remove(marks: Path, pid: int) -> None:
    """The host is gone: its mark can go, and what it kept that was temporary."""
    (marks / str(pid)).unlink(missing_ok=True)
    _remove_temporary(f"{_prefix(marks)}{pid}-")


def _prefix(marks: Path) -> str:
    """How the names begin of what is temporary in the hosts of one appliance."""
    return f"appliance-{hashlib.sha256(str(marks).encode()).hexdigest()[:8]}-"


def _remove_temporary(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for segment in _SHARED.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # the file may belong to another user
            segment.unlink()


def reclaim(run_dir: Path | str) -> list[int]:
    """Kill the engine hosts of an earlier run, with all of their process groups, and remove their marks.

    A group whose leader is gone is ended too, and what was temporary is removed. Returns the process ids of
    the hosts that still ran.
    """
    marks = folder(Path(run_dir))
    killed = []
    for path in sorted(marks.glob("[0-9]*")):
        pid = int(path.name)
        try:
            mark = msgspec.json.decode(path.read_bytes(), type=PidFile)
        except msgspec.DecodeError:  # the machine died while it was written: so did the host
            path.unlink()
            continue
        if mark.boot == _boot() and _runs(pid, mark):
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(pid, signal.SIGKILL)
            killed.append(pid)
        path.unlink()
    _remove_temporary(_prefix(marks))
    return killed


def _runs(pid: int, mark: PidFile) -> bool:
    """Whether anything of the marked host's process group is alive."""
    leader = _look(pid)
    if leader is not None and leader.start != mark.start:
        return False  # the process id has a new owner, so the old group is empty
    members = (_look(int(path.name)) for path in Path("/proc").glob("[0-9]*"))
    return any(
        member.group == pid and member.session == pid and member.start >= mark.start and member.state != "Z"
        for member in members
        if member is not None
    )


def _look(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold anything; after it come state (field 3), ppid, group, session, ...
    fields = text.rpartition(")")[2].split()
    return _Process(fields[0], int(fields[2]), int(fields[3]), int(fields[19]))


def _boot() -> str:
    return _BOOT.read_text().strip()


def kill_marked(variable: str, value: str) -> list[int]:
    """Kill every other process that was started with this variable in its environment, and see them end.

    Ray's own agents outlive a driver that was killed. Whoever calls this knows that nobody else may rightly
    have started them: the lock on the data folder says so.
    """
    mark = f"{variable}={value}".encode()
    killed: list[int] = []
    while found := [pid for pid in _marked(mark) if pid not in killed]:  # one may start another meanwhile
        killed += found
        patience = time.monotonic() + _PATIENCE
        while time.monotonic() < patience and any(_alive(pid) for pid in found):
            time.sleep(0.02)
    return killed


def _marked(mark: bytes) -> list[int]:
    """Kill every other process with ``mark`` in its environment, and name those."""
    killed = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
        except OSError:  # it has ended, or is another user's
            continue
    return killed


def _alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than an entry that nobody has reaped yet.

    While threads of it are still ending it looks like that too, but holds its sockets.
    """
    process = Path("/proc") / str(pid)
    try:
        ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not ended or sum(1 for _ in (process / "task").iterdir()) > 1
    except OSError:
        return False
