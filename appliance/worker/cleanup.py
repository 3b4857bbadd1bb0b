"""Removes processes, temporary files and shared memory that worker processes leave behind.

A worker process is killed, so its libraries cannot clean up. Each worker process has a pid file
``<run_dir>/hosts/<pid>``. The file has the start time of the process and the id of the boot, because the
kernel may give the process id to another process later. (The folder keeps its old name, so that the first
start after an upgrade finds the pid files of the earlier version.) The names of temporary folders and of
shared memory begin with a prefix for the appliance and the process id.
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
    """The content of a pid file: identifies one worker process, together with the process id."""

    start: int  # clock ticks since boot, as in /proc/<pid>/stat
    boot: str  # id of the boot of the machine
    model: str


def pid_folder(run_dir: Path) -> Path:
    return run_dir / "hosts"


def write_pid_file(pid_files: Path, model: str) -> None:
    own = read_stat(os.getpid())
    if own is None:
        raise RuntimeError("/proc has no entry for this process: mount the proc file system at /proc")
    pid_files.mkdir(parents=True, exist_ok=True)
    pid_file = PidFile(own.start, _boot(), model)
    (pid_files / str(os.getpid())).write_bytes(msgspec.json.encode(pid_file))


def use_own_folder(pid_files: Path) -> None:
    """Give the calling worker process its own temporary folder, and own names for shared memory.

    ``remove`` finds both by their names.
    """
    name = f"{_prefix(pid_files)}{os.getpid()}-"
    folder = Path(tempfile.gettempdir()) / name
    shutil.rmtree(folder, ignore_errors=True)  # left by an earlier process with the same id
    folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # the zygote may have cached another folder
    # The standard library chooses the names of shared memory, for example for vLLM. Linux allows longer names
    # than its limit.
    shared_memory._SHM_NAME_PREFIX = f"/{name}"  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
    shared_memory._SHM_SAFE_NAME_LENGTH = len(name) + 17  # type: ignore[attr-defined]  # noqa: SLF001 - as above


def kill_group(pid: int) -> None:
    """Kill a worker process and its children.

    The worker process must not be reaped yet, because another process may get its id then.
    """
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # the process was just forked and does not lead a group yet
            os.kill(pid, signal.SIGKILL)


def remove(pid_files: Path, pid: int) -> None:
    """Remove the pid file and the temporary files of a worker process that has ended."""
    (pid_files / str(pid)).unlink(missing_ok=True)
    _remove_temporary(f"{_prefix(pid_files)}{pid}-")


def _prefix(pid_files: Path) -> str:
    """Return the prefix for names of temporary folders and shared memory. It differs between appliances."""
    return f"appliance-{hashlib.sha256(str(pid_files).encode()).hexdigest()[:8]}-"


def _remove_temporary(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for segment in _SHARED.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # the file may belong to another user
            segment.unlink()


def kill_leftover_workers(run_dir: Path) -> list[int]:
    """Kill the process groups of worker processes that an earlier run left behind.

    Also removes their pid files, temporary files and shared memory. Returns the process ids of the worker
    processes; a worker process may have ended already, with children left in its group.
    """
    pid_files = pid_folder(run_dir)
    killed = []
    for path in sorted(pid_files.glob("[0-9]*")):
        pid = int(path.name)
        try:
            pid_file = msgspec.json.decode(path.read_bytes(), type=PidFile)
        except FileNotFoundError:  # the process has just ended, and `remove` was called for it
            continue
        except msgspec.DecodeError:  # the machine stopped while the file was written
            path.unlink(missing_ok=True)
            continue
        if pid_file.boot == _boot() and _runs(pid, pid_file):
            with contextlib.suppress(ProcessLookupError):  # the group has just ended
                os.killpg(pid, signal.SIGKILL)
            killed.append(pid)
        path.unlink(missing_ok=True)
    _remove_temporary(_prefix(pid_files))
    return killed


def _runs(pid: int, pid_file: PidFile) -> bool:
    leader = read_stat(pid)
    if leader is not None and leader.start != pid_file.start:
        return False  # another process has this id now, so the group of the pid file has ended
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
