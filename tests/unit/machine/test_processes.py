"""Processes that a crashed appliance has left behind, found by a variable in their environment."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys

import psutil

from appliance.machine.processes import is_running, kill_marked


def test_marked_processes_are_killed_and_no_others() -> None:
    def sleeping(value: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], env={**os.environ, "APPLIANCE_TEST_MARK": value})

    ours, another = sleeping("/data/one"), sleeping("/data/one/more")
    try:
        assert kill_marked("APPLIANCE_TEST_MARK", "/data/one") == [ours.pid]
        assert ours.wait(60) == -signal.SIGKILL
        assert another.poll() is None
        assert (is_running(ours.pid), is_running(another.pid)) == (False, True)
        assert kill_marked("APPLIANCE_TEST_MARK", "/data/one") == []
    finally:
        another.kill()
        another.wait(60)


def test_a_process_id_that_was_used_before_hides_no_process() -> None:
    mark = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"], env={**os.environ, "MARK": mark}
    )
    cached = next(each for each in psutil.process_iter() if each.pid == process.pid)
    vars(cached)["_ident"] = (process.pid, 1.0)  # as if the id had belonged to an earlier process
    assert kill_marked("MARK", mark) == [process.pid]
    assert process.wait(20) == -signal.SIGKILL
