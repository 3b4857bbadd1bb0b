"""The commands of a build: what they see, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.builds.build_process import BuildProcess
from appliance.domain.errors import WeightsError
from appliance.machine import landlock

#: Starts a build in a process that was started with a secret. argv: the folder, and the command.
BUILDER = """
import sys
from pathlib import Path

from appliance.builds.build_process import BuildProcess

BuildProcess("a/b", Path(sys.argv[1]), print, {}).run(sys.argv[2:], Path(sys.argv[1]))
"""
#: Prints which of its ancestors let it read their environment, and whether it finds the secret anywhere.
SPY = """
import os
from pathlib import Path

pid, readable = os.getpid(), []
while pid > 1:
    pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for name in ("environ", "mem"):
        try:
            open(f"/proc/{pid}/{name}", "rb").close()
        except OSError:
            continue
        readable.append(name)
found = 0
for file in Path("/proc").glob("[0-9]*/environ"):
    try:
        found += b"secret-of-the-" in file.read_bytes()
    except OSError:
        continue
print("readable:", readable, "secrets:", found, "own:", "SECRETIVE" in os.environ)
"""


def build(folder: Path, lines: list[str], **variables: str) -> BuildProcess:
    return BuildProcess("a/b", folder, lines.append, variables)


@pytest.mark.skipif(not landlock.supported(), reason="the kernel does not support Landlock")
def test_a_step_cannot_read_the_secrets_of_its_ancestors(tmp_path: Path) -> None:
    secrets = {"APPLIANCE_TOKEN": "secret-of-the-operator", "HF_TOKEN": "secret-of-the-hub"}
    command = [sys.executable, "-c", BUILDER, str(tmp_path), sys.executable, "-c", SPY]
    ran = subprocess.run(command, env={**os.environ, **secrets}, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("readable: [] secrets: 0 own: False\n", "")


def test_a_step_gets_the_variables_of_the_project_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-the-hub")
    lines: list[str] = []
    text = "Grüße\n" * 10_000  # more than a pipe holds
    build(tmp_path, lines, TEXT=text).run(
        ["/bin/sh", "-c", 'printf %s "$TEXT" | wc -l; echo "${HF_TOKEN-none}"'], tmp_path
    )
    assert lines == ["10000", "none"]


@pytest.mark.skipif(not landlock.supported(), reason="the kernel does not support Landlock")
def test_code_that_a_variable_loads_runs_only_in_the_domain(tmp_path: Path) -> None:
    """Variables of the project apply to the command, not to the program that creates the domain."""
    lines: list[str] = []
    build(tmp_path, lines, LD_PRELOAD="/nowhere.so").run(["/bin/true"], tmp_path)
    assert len(lines) == 1, "the loader complains once, for the command"
    assert "/nowhere.so" in lines[0]


def test_the_exit_code_and_a_missing_program_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be built: /bin/sh ended with code 7"):
        build(tmp_path, []).run(["/bin/sh", "-c", "exit 7"], tmp_path)
    with pytest.raises(WeightsError, match="cannot be built: no-such-program: No such file or directory"):
        build(tmp_path, []).run(["no-such-program"], tmp_path)
