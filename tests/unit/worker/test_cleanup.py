"""Files that worker processes of a crashed appliance have left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.worker import cleanup


def test_only_leftovers_of_this_appliance_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, shared = tmp_path / "tmp", tmp_path / "shm"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(cleanup, "_SHARED", shared)
    program = "import os, tempfile, sys; from pathlib import Path; from appliance.worker import cleanup;"
    program += "cleanup.use_own_folder(Path(sys.argv[1])); print(tempfile.mkdtemp())"
    shared.mkdir()
    temporary.mkdir()
    kept, gone = tmp_path / "other" / "run", tmp_path / "ours" / "run"
    made = {}
    for run in (kept, gone):
        pid_files = cleanup.pid_folder(run)
        pid_files.mkdir(parents=True)
        command = [sys.executable, "-c", program, str(pid_files)]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        made[run] = Path(subprocess.check_output(command, text=True, env=environment).strip())
        (shared / f"{made[run].parent.name}0123").touch()
    (temporary / "appliance-of-someone").mkdir()
    (shared / "psm_0123").touch()
    planted = shared / f"{made[gone].parent.name}planted"
    planted.mkdir()  # as anybody may, and cannot be removed like shared memory
    assert cleanup.kill_leftover_workers(gone) == []
    planted.rmdir()
    assert made[kept].exists()
    assert sorted(path.name for path in temporary.iterdir()) == sorted(
        [made[kept].parent.name, "appliance-of-someone"]
    )
    assert sorted(path.name for path in shared.iterdir()) == sorted(
        [f"{made[kept].parent.name}0123", "psm_0123"]
    )


def test_workers_may_end_while_leftovers_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their zygote, or their replica, still runs, and removes their pid files."""
    pid_files = cleanup.pid_folder(tmp_path)
    cleanup.write_pid_file(pid_files, "test/model")
    own = pid_files / str(os.getpid())
    other = pid_files / "1"
    other.write_bytes(own.read_bytes())

    def ended(*_: object) -> bool:
        own.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
        return False

    monkeypatch.setattr(cleanup, "_runs", ended)
    assert cleanup.kill_leftover_workers(tmp_path) == []
