"""Removes what worker processes leave behind: orphaned processes, temporary files, shared memory.

A pid file is ``<run_dir>/hosts/<pid>``. It holds the start time of the process and the id of the boot,
because the kernel may since have given the process id to another process. The folder keeps its old name, so
that the first start after an upgrade still finds what the version before it left. A worker process keeps its
temporary files and sockets in a folder whose name holds the appliance and the process id, and names its
shared memory in the same way: worker processes are killed, so their libraries cannot tidy up.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
from multiprocessing import shared_memory
from pathlib import Path
from typing import Final

import msgspec

from appliance.machine.proc import pids, read_stat

_SHARED: Final = Path("/dev/shm")  # noqa: S108 - where the kernel keeps shared memory that has a name
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class PidFile(msgspec.Struct, frozen=True):
    """Identifies one worker process, together with its process id."""

    start: int  # clock ticks since boot, as in /proc/<pid>/stat
    boot: str
    model: str


def folder(run_dir: Path) -> Path:
    """The folder with the pid files of an appliance."""
    return run_dir / "hosts"


def write(pid_files: Path, model: str) -> None:
    """Write the pid file of the calling process, a worker process of ``model``."""
    own = read_stat(os.getpid())
    if own is None:
        raise RuntimeError("a process does not find itself in /proc")
    pid_files.mkdir(parents=True, exist_ok=True)
    pid_file = PidFile(own.start, _boot(), model)
    (pid_files / str(os.getpid())).write_bytes(msgspec.json.encode(pid_file))


def own_places(pid_files: Path) -> None:
    """Have the calling worker process keep temporary files where they are found after its end."""
    name = f"{_prefix(pid_files)}{os.getpid()}-"
    folder = Path(tempfile.gettempdir()) / name
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier process with this id
    folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # it has been looked up in the zygote
    # Names are given by the standard library, for vLLM's workers among others. Linux takes longer ones.
    shared_memory._SHM_NAME_PREFIX = f"/{name}"  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
    shared_memory._SHM_SAFE_NAME_LENGTH = len(name) + 17  # type: ignore[attr-defined]  # noqa: SLF001 - as above


def remove(pid_files: Path, pid: int) -> None:
    """Remove the pid file and the temporary files of a worker process that has ended."""
    (pid_files / str(pid)).unlink(missing_ok=True)
    _remove_temporary(f"{_prefix(pid_files)}{pid}-")


def _prefix(pid_files: Path) -> str:
    """The start of the names of temporary files and shared memory of one appliance."""
    return f"appliance-{hashlib.sha256(str(pid_files).encode()).hexdigest()[:8]}-"


def _remove_temporary(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for segment in _SHARED.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # the file may belong to another user
            segment.unlink()


def reclaim(run_dir: Path | str) -> list[int]:
    """Kill the process groups of an earlier run's worker processes and remove their pid files.

    A group whose leader is gone is ended too, and what was temporary is removed. Returns the process ids of
    the worker processes that still ran.
    """
    pid_files = folder(Path(run_dir))
    killed = []
    for path in sorted(pid_files.glob("[0-9]*")):
        pid = int(path.name)
        try:
            pid_file = msgspec.json.decode(path.read_bytes(), type=PidFile)
        except msgspec.DecodeError:  # the machine died while it was written: so did the worker process
            path.unlink()
            continue
        if pid_file.boot == _boot() and _runs(pid, pid_file):
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(pid, signal.SIGKILL)
            killed.append(pid)
        path.unlink()
    _remove_temporary(_prefix(pid_files))
    return killed


def _runs(pid: int, pid_file: PidFile) -> bool:
    """Whether any process is alive in the process group that the pid file names."""
    leader = read_stat(pid)
    if leader is not None and leader.start != pid_file.start:
        return False  # the process id has a new owner, so the old group is empty
    return any(
        member.group == pid
        and member.session == pid
        and member.start >= pid_file.start
        and member.state != "Z"
        for member in map(read_stat, pids())
        if member is not None
    )


def _boot() -> str:
    return _BOOT.read_text().strip()
