"""What a process in a Landlock domain can do, tried in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.machine import landlock

pytestmark = pytest.mark.skipif(not landlock.supported(), reason="the kernel does not support Landlock")

#: Runs in a domain. argv: the version of Landlock to use, a process outside of the domain, and a folder.
PROGRAM = """
import os, signal, subprocess, sys
from pathlib import Path

from appliance.machine import landlock

version, outside, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
assert Path(f"/proc/{outside}/environ").read_bytes()
landlock._version = lambda: version
assert landlock.restrict()
for file in ("environ", "mem", "maps", "fd/0"):
    try:
        with open(f"/proc/{outside}/{file}", "rb") as opened:
            opened.read(1)
    except PermissionError:
        continue
    sys.exit(f"{file} of another process was opened")
try:
    os.kill(int(outside), 0)
    signals = True
except PermissionError:
    signals = False
assert signals == (version < 6), signals
(folder / "one").mkdir()
(folder / "two").mkdir()
(folder / "one" / "file").write_text("x")
(folder / "one" / "file").rename(folder / "two" / "file")
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(b"x\\n")
child.stdin.flush()
assert child.stdout.readline()  # it runs
assert Path(f"/proc/{child.pid}/environ").read_bytes()
child.send_signal(signal.SIGTERM)
assert child.wait() == -signal.SIGTERM
assert Path("/proc/self/environ").exists() and Path("/proc/meminfo").read_text()
"""


@pytest.mark.parametrize("version", [2, 6])
def test_a_model_cannot_read_other_processes(version: int, tmp_path: Path) -> None:
    if landlock._version() < version:
        pytest.skip("the kernel has an older version of Landlock")
    program = [sys.executable, "-c", PROGRAM, str(version), str(os.getpid()), str(tmp_path)]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_old_kernels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (-1, 0, 1):
        monkeypatch.setattr(landlock, "_version", lambda version=version: version)
        assert not landlock.supported()
        assert not landlock.restrict()
