"""The zygote, and the end of worker processes when the processes around them are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.domain.prediction import Done
from appliance.machine.processes import is_running
from appliance.worker import cleanup, handle
from appliance.worker.replica import Replica
from tests.support.appliance_process import PATIENCE, ROOT, until, wait_for
from tests.support.worker_processes import Caller, Zygote, spec, until_gone

pytestmark = pytest.mark.integration

REPLICA = """
import asyncio, sys
from pathlib import Path
from appliance.worker.replica import Replica
from tests.support.worker_processes import spec

async def main(socket, run_dir, kind):
    replica = Replica("runner-0", socket, run_dir)
    report = await replica.load(spec(Path(run_dir), kind))
    print(report.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path) as running:
        yield running


class ReplicaProcess:
    """A replica in a process of its own, with one model loaded."""

    def __init__(self, zygote: Zygote, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(zygote.socket), str(zygote.run_dir), kind],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.worker = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def child_of(folder: Path) -> int:
    note = folder / "child"
    return int(wait_for(lambda: note.exists() and note.read_text(), "the runner's child"))


async def test_it_tells_what_it_could_not_import_and_has_no_threads(zygote: Zygote) -> None:
    wait_for(lambda: "imported tests.support.faulty_kinds" in zygote.log.read_text(), "the imports")
    wait_for(lambda: "cannot import no_such_module" in zygote.log.read_text(), "the other import")
    assert len(list(Path(f"/proc/{zygote.process.pid}/task").iterdir())) == 1


async def test_a_killed_replica_takes_its_worker_along(zygote: Zygote, tmp_path: Path) -> None:
    replica = ReplicaProcess(zygote, "family")
    child = child_of(tmp_path)
    assert is_running(replica.worker)
    replica.kill()
    await until_gone(replica.worker, child)
    wait_for(lambda: list((tmp_path / "hosts").iterdir()) == [], "the removal of the pid file")


async def test_a_killed_replica_ends_even_a_stuck_worker(zygote: Zygote, tmp_path: Path) -> None:
    replica = ReplicaProcess(zygote, "echo")
    os.kill(replica.worker, signal.SIGSTOP)
    replica.kill()
    await until_gone(replica.worker)


async def test_a_dead_worker_leaves_nothing_temporary(zygote: Zygote, tmp_path: Path) -> None:
    replica = Replica("runner-0", str(zygote.socket), str(zygote.run_dir))
    report = await replica.load(spec(tmp_path, "untidy"))
    left = [Path(line) for line in (tmp_path / "left").read_text().splitlines()]
    assert len(left) == 3
    assert all(path.exists() for path in left)
    os.kill(report.pid, signal.SIGKILL)
    await until_gone(report.pid)
    await replica.unload()
    assert not any(path.exists() for path in left)
    assert not left[0].parent.exists()


async def test_a_dead_worker_leaves_no_children(zygote: Zygote, tmp_path: Path) -> None:
    replica = Replica("runner-0", str(zygote.socket), str(tmp_path))
    report = await replica.load(spec(tmp_path, "family"))
    caller = Caller(replica)
    child = child_of(tmp_path)
    os.kill(report.pid, signal.SIGKILL)
    lost = await caller.over()
    assert lost is not None
    assert "killed by signal 9" in lost
    await until_gone(child)


async def test_a_worker_outlives_its_zygote_and_still_ends_with_its_replica(
    zygote: Zygote, tmp_path: Path
) -> None:
    replica = Replica("runner-0", str(zygote.socket), str(tmp_path))
    report = await replica.load(spec(tmp_path, "echo"))
    other = ReplicaProcess(zygote, "family")
    child = child_of(tmp_path)
    zygote.process.kill()
    zygote.process.wait()
    caller = Caller(replica)
    assert await caller.run("a") == Done("succeeded")
    other.kill()
    await until_gone(other.worker, child)
    await caller.start("b", crash=True)
    lost = await caller.over()
    assert lost is not None
    assert "exit code is unknown" in lost
    await until_gone(report.pid)
    again = await replica.load(spec(tmp_path, "echo"))
    assert not again.forked
    assert await Caller(replica).run("c") == Done("succeeded")
    await replica.unload()


async def test_sigterm_ends_it_with_all_workers(zygote: Zygote, tmp_path: Path) -> None:
    replica = Replica("runner-0", str(zygote.socket), str(tmp_path))
    report = await replica.load(spec(tmp_path, "family"))
    caller = Caller(replica)
    child = child_of(tmp_path)
    zygote.process.terminate()
    assert zygote.process.wait(20) == 0
    await until_gone(report.pid, child)
    assert await caller.over() is not None
    assert list((tmp_path / "hosts").iterdir()) == []


async def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    script = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"
    command = [sys.executable, "-m", "appliance.worker.zygote", "--socket", str(tmp_path / "z.sock")]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for((tmp_path / "z.sock").exists, "the zygote's socket")
    parent.kill()
    parent.communicate()
    await until_gone(pid)


async def test_a_second_zygote_takes_the_place_of_the_first(zygote: Zygote, tmp_path: Path) -> None:
    zygote.process.kill()
    zygote.process.wait()
    with Zygote(tmp_path):
        replica = Replica("runner-0", str(zygote.socket), str(tmp_path))
        deadline = asyncio.timeout(PATIENCE)
        async with deadline:
            while not (await replica.load(spec(tmp_path))).forked:  # the old socket's file may still be seen
                await replica.unload()
        await replica.unload()


async def test_nonsense_is_refused_and_harms_nobody(zygote: Zygote, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(zygote.socket))
        client.sendall(b"\0\0\0\1\xc1")
        assert client.recv(1) == b""
    replica = Replica("runner-0", str(zygote.socket), str(tmp_path))
    assert (await replica.load(spec(tmp_path))).forked
    await replica.unload()


WORKER_LIKE = """
import subprocess, sys, time
from pathlib import Path
from appliance.worker import cleanup, handle
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
cleanup.write_pid_file(Path(sys.argv[1]), "test/model")
print(child.pid, flush=True)
if sys.argv[2] == "stay":
    time.sleep(1000)
"""


@pytest.mark.parametrize("leader", ["stay", "go"])
async def test_what_a_crash_left_behind_is_reclaimed(tmp_path: Path, leader: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER_LIKE, str(cleanup.pid_folder(tmp_path)), leader],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    if leader == "go":
        process.wait()
    assert is_running(child)
    assert cleanup.kill_leftover_workers(tmp_path) == [process.pid]
    process.communicate()
    await until_gone(process.pid, child)
    assert cleanup.kill_leftover_workers(tmp_path) == []


async def test_a_process_that_only_has_the_number_of_a_worker_is_left_alone(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER_LIKE, str(cleanup.pid_folder(tmp_path)), "stay"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    path = cleanup.pid_folder(tmp_path) / str(process.pid)
    mark = msgspec.json.decode(path.read_bytes(), type=cleanup.PidFile)
    others = (
        msgspec.structs.replace(mark, start=mark.start - 1),
        msgspec.structs.replace(mark, boot="another boot"),
    )
    for other in others:
        path.write_bytes(msgspec.json.encode(other))
        assert cleanup.kill_leftover_workers(tmp_path) == []
        assert not path.exists()
    path.write_bytes(b"{")  # the machine went down while it was written
    assert cleanup.kill_leftover_workers(tmp_path) == []
    assert is_running(process.pid)
    assert is_running(child)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def gate(folder: Path, name: str) -> Path:
    """Write a module whose import ends when the returned file exists."""
    opened = folder / f"{name}.open"
    (folder / f"{name}.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(opened)!r}).exists():\n    time.sleep(0.01)\n"
    )
    return opened


async def test_a_worker_does_not_wait_for_the_modules_of_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = gate(tmp_path, "first_module")
    gate(tmp_path, "second_module")  # is never opened
    with Zygote(tmp_path, "first_module,second_module") as zygote:
        replica = Replica("runner-0", str(zygote.socket), str(tmp_path))
        loading = asyncio.ensure_future(replica.load(spec(tmp_path)))
        for _ in range(10):  # until the request to fork is in the zygote's socket
            await asyncio.sleep(0)
        first.touch()
        report = await loading
        assert report.forked
        assert await Caller(replica).run("a") == Done("succeeded")
        zygote.process.terminate()  # in the middle of the second import
        assert zygote.process.wait(PATIENCE) == 0
        wait_for(lambda: not is_running(report.pid), "the worker to end")


async def test_modules_of_other_kinds_wait_while_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    gate(tmp_path, "other_module").touch()
    with Zygote(tmp_path) as zygote:
        slow, other = (Replica(f"runner-{n}", str(zygote.socket), str(tmp_path)) for n in range(2))
        loading = asyncio.ensure_future(slow.load(spec(tmp_path, "slow")))
        await until((tmp_path / "child").exists)
        await handle.prepare(zygote.socket, ["other_module"])
        for _ in range(3):  # the zygote has time to import between these requests
            assert (await other.load(spec(tmp_path))).forked
            await other.unload()
        assert "other_module" not in zygote.log.read_text()
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await slow.unload()
        await until(lambda: "imported other_module" in zygote.log.read_text())


async def test_a_hidden_package_is_as_if_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "hidden.py").touch()
    (tmp_path / "importer.py").write_text("import hidden\n")
    with Zygote(tmp_path, "importer", hide="hidden") as zygote:
        await until(
            lambda: "cannot import importer into the zygote: ModuleNotFound" in zygote.log.read_text()
        )
