"""Children of the driver are restarted, end with it, and write to their logs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from appliance.driver import supervisor
from appliance.driver.supervisor import Supervisor
from tests.support.appliance_process import until

LIVES = (
    "import os; print(os.getpid(), os.environ['MARK'], flush=True); os.read(0, 1); print('left', flush=True)"
)


async def lines(log: Path, count: int) -> list[str]:
    """Wait for the first ``count`` lines of a log."""
    await until(lambda: log.exists() and log.read_text().count("\n") >= count)
    return log.read_text().splitlines()[:count]


def children() -> set[int]:
    """Return the child processes of this process, zombies too."""
    return {each.pid for each in psutil.Process().children()}


async def test_a_child_that_ends_is_restarted_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    log = tmp_path / "child.log"
    child = Supervisor("child", lambda: [sys.executable, "-c", LIVES], log, {"MARK": "here"})
    await child.start()
    (first,) = await lines(log, 1)
    pid, mark = first.split()
    assert mark == "here"
    os.kill(int(pid), 9)
    _, second = await lines(log, 2)
    await child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(int(second.split()[0]), 0)
    assert len(log.read_text().splitlines()) == 2


async def test_a_child_gets_its_secrets_on_its_standard_input_at_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    log = tmp_path / "child.log"
    prints = "import sys; print(sys.stdin.readline().strip(), flush=True)"
    child = Supervisor("child", lambda: [sys.executable, "-c", prints], log, secrets=lambda: {"NAME": "ä"})
    await child.start()
    found = await lines(log, 2)
    await child.stop()
    assert [json.loads(line) for line in found] == [{"NAME": "ä"}] * 2


async def test_a_line_reaches_the_child_and_the_children_that_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    log = tmp_path / "child.log"
    prints = "import sys; print(sys.stdin.readline().strip(), flush=True)"
    child = Supervisor("child", lambda: [sys.executable, "-c", prints], log)
    await child.start()
    child.send_line("stopping")
    assert await lines(log, 3) == ["stopping"] * 3
    await child.stop()


async def test_a_child_gets_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zygote is such a child; worker processes inherit its environment, and models may contain code."""
    secrets = (
        "APPLIANCE_TOKEN",
        "REPLICATE_API_TOKEN",
        "RAY_AUTH_TOKEN",
        "HF_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
    )
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OF_THE_OPERATOR", "passed on")
    log = tmp_path / "child.log"
    prints = "import json, os; print(json.dumps(dict(os.environ)), flush=True); os.read(0, 1)"
    child = Supervisor("child", lambda: [sys.executable, "-c", prints], log, {"MARK": "here"})
    await child.start()
    (told,) = await lines(log, 1)
    await child.stop()
    variables = json.loads(told)
    assert "secret" not in variables.values()
    assert (variables["OF_THE_OPERATOR"], variables["MARK"]) == ("passed on", "here")


async def test_a_child_can_be_stopped_during_its_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.0)
    others = children()
    for wait in (0.0, 0.001, 0.002, 0.004, 0.008, 0.016):
        child = Supervisor("child", lambda: [sys.executable, "-c", LIVES], tmp_path / "log", {"MARK": "x"})
        await child.start()
        (running,) = children() - others
        os.kill(running, 9)
        await asyncio.sleep(wait)
        await child.stop()
        assert children() <= others


async def test_the_standard_input_of_a_child_ends_with_the_driver(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    command = repr([sys.executable, "-c", LIVES])
    driver = (
        "import asyncio, os, pathlib\n"
        "from appliance.driver.supervisor import Supervisor\n"
        "async def main():\n"
        f"    log = pathlib.Path({str(log)!r})\n"
        f"    await Supervisor('child', lambda: {command}, log, {{'MARK': 'x'}}).start()\n"
        f"    while not pathlib.Path({str(log)!r}).read_text(): await asyncio.sleep(0.01)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", driver)
    await process.wait()
    assert (await lines(log, 2))[1] == "left"


async def test_a_failed_restart_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example because there is no space for its log."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    folder = tmp_path / "logs"
    folder.mkdir()
    log = folder / "child.log"
    child = Supervisor("child", lambda: [sys.executable, "-c", LIVES], log, {"MARK": "here"})
    await child.start()
    (first,) = await lines(log, 1)
    folder.rename(tmp_path / "away")
    os.kill(int(first.split()[0]), 9)
    await asyncio.sleep(0.1)  # several starts fail
    (tmp_path / "away").rename(folder)
    await lines(log, 2)
    await child.stop()


async def test_a_child_is_restarted_although_its_command_failed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the command depends on a file that was damaged for a moment."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    log = tmp_path / "child.log"
    calls = 0

    def command() -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ValueError("the runtime config is damaged")
        return [sys.executable, "-c", "print('started', flush=True)"]

    child = Supervisor("child", command, log)
    await child.start()
    assert await lines(log, 2) == ["started"] * 2
    await child.stop()
