"""Real worker processes, forked and spawned, behind a replica."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.prediction import Done, Log
from appliance.machine.processes import is_running
from appliance.worker.memory_monitor import LEAST_TOLERANCE
from appliance.worker.protocol import Commands
from appliance.worker.replica import MEASURE_INTERVAL, Replica
from tests.support.appliance_process import until
from tests.support.worker_processes import Caller, Zygote, spec, until_gone

pytestmark = pytest.mark.integration

MIB = 1024**2


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("run")) as running:
        yield running


@pytest.fixture
async def replica(zygote: Zygote) -> AsyncIterator[Replica]:
    replica = Replica("runner-0", str(zygote.socket), str(zygote.run_dir))
    yield replica
    await replica.unload()


@pytest.mark.parametrize("reachable", [True, False])
async def test_forked_or_spawned_it_is_the_same(zygote: Zygote, tmp_path: Path, reachable: bool) -> None:
    socket = zygote.socket if reachable else tmp_path / "none.sock"
    replica = Replica("runner-0", str(socket), str(tmp_path))
    report = await replica.load(spec(tmp_path))
    assert report.forked is reachable
    assert (tmp_path / "hosts" / str(report.pid)).exists()
    assert os.getpgid(report.pid) == report.pid
    caller = Caller(replica)
    assert await caller.run("a", text="hi", print="seen") == Done("succeeded")
    assert (caller.output("a"), caller.logs("a")) == (["hi"], "seen\n")
    assert caller.metrics("a")["predict_time"] >= 0
    await replica.unload()
    assert await caller.over() is None
    assert not is_running(report.pid)
    assert list((tmp_path / "hosts").iterdir()) == []


async def test_a_model_with_its_own_python_is_started_with_it(replica: Replica, tmp_path: Path) -> None:
    report = await replica.load(msgspec.structs.replace(spec(tmp_path), python=sys.executable))
    assert not report.forked
    command = psutil.Process(report.pid).cmdline()
    assert command[:4] == [sys.executable, "-P", "-m", "appliance.worker.process"]
    assert await Caller(replica).run("a", text="hi") == Done("succeeded")


async def test_a_python_that_is_missing_is_named(replica: Replica, tmp_path: Path) -> None:
    missing = str(tmp_path / "venv" / "bin" / "python")
    with pytest.raises(
        LoadFailed, match=rf"No such file or directory: {missing}: run `appliance pull test/echo`"
    ):
        await replica.load(msgspec.structs.replace(spec(tmp_path), python=missing))


async def test_a_prediction_ends_in_one_of_three_ways(replica: Replica, tmp_path: Path) -> None:
    await replica.load(spec(tmp_path, stream=True))
    caller = Caller(replica)
    assert await caller.run("ok", text="one two") == Done("succeeded")
    assert await caller.run("no", fail="out of ideas") == Done("failed", "out of ideas")
    await caller.start("long", text="one two", chunk_delay=1000)
    await caller.begun("long")
    await caller.cancel("long")
    assert await caller.done("long") == Done("canceled")
    assert caller.output("long") == ["one "]


async def test_an_unexpected_exception_fails_the_prediction_and_is_logged_in_it(
    replica: Replica, tmp_path: Path
) -> None:
    await replica.load(spec(tmp_path))
    caller = Caller(replica)
    done = await caller.run("a", repeat="not a number")
    assert done.status == "failed"
    assert done.error == "can't multiply sequence by non-int of type 'str'"
    assert "Traceback" in caller.logs("a")
    assert "echo/runner.py" in caller.logs("a")
    assert await caller.run("b") == Done("succeeded")


async def test_no_more_run_at_a_time_than_the_model_takes(replica: Replica, tmp_path: Path) -> None:
    await replica.load(spec(tmp_path, concurrency=2, stream=True))
    caller = Caller(replica)
    for id in ("a", "b"):
        await caller.start(id, text="x y", chunk_delay=1000)
    await caller.start("c")
    await caller.start("d")
    await caller.begun("b")
    await caller.cancel("c")
    assert await caller.done("c") == Done("canceled")
    assert "d" not in caller.events
    await caller.cancel("a")
    assert await caller.done("d") == Done("succeeded")


async def test_a_job_and_its_cancel_in_one_message(replica: Replica, tmp_path: Path) -> None:
    await replica.load(spec(tmp_path))
    caller = Caller(replica)
    await caller.start("a", delay=1000)
    await caller.cancel("a")
    assert await caller.done("a") == Done("canceled")
    assert await caller.run("b") == Done("succeeded")


async def test_progress_and_prints_of_concurrent_predictions_stay_apart(
    replica: Replica, tmp_path: Path
) -> None:
    await replica.load(spec(tmp_path))
    caller = Caller(replica)
    for id in ("a", "b"):
        await caller.start(id, print=f"this is {id}", progress=3)
    for id in ("a", "b"):
        await caller.done(id)
        lines = caller.logs(id).splitlines()  # with or without 67 %, which the last state replaces
        assert lines[:2] == [f"this is {id}", " 33%|###       | 1/3"]
        assert lines[-1] == "100%|##########| 3/3"


@pytest.mark.parametrize(
    ("input", "how"),
    [({"crash": True}, "was killed by signal 9 (SIGKILL)"), ({"exit_code": 3}, "exited with code 3")],
)
async def test_how_a_worker_died_is_said(
    replica: Replica, tmp_path: Path, input: dict[str, object], how: str
) -> None:
    await replica.load(spec(tmp_path))
    caller = Caller(replica)
    await caller.run("before", text="kept")
    await caller.start("a", **input)
    lost = await caller.over()
    assert lost is not None
    assert lost.splitlines()[0] == f"the worker process of test/echo {how}"
    assert "is loaded after" in lost
    assert caller.output("before") == ["kept"]
    await replica.load(spec(tmp_path))
    assert await Caller(replica).run("b") == Done("succeeded")


async def test_a_worker_that_takes_too_much_memory_is_ended(replica: Replica, tmp_path: Path) -> None:
    """Its limit is that of the load until another one is sent."""
    await replica.load(msgspec.structs.replace(spec(tmp_path), limit=600 << 20))
    caller = Caller(replica)
    assert await caller.run("a", memory=200, delay=2 * MEASURE_INTERVAL) == Done("succeeded")
    assert caller.taken.main > 200 << 20
    replica.receive(Commands(limit=64 << 20))
    await caller.start("b", memory=300, delay=1000)
    await caller.over()
    assert isinstance(caller.error, OutOfMemory)
    assert caller.error.memory is not None
    assert caller.error.memory > (64 << 20) + LEAST_TOLERANCE
    assert "with a limit of 64.0 MiB, and was killed" in caller.error.detail
    await replica.load(spec(tmp_path))
    assert await Caller(replica).run("c") == Done("succeeded")


async def test_a_worker_that_takes_too_much_while_it_loads_is_ended(replica: Replica, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"with a limit of 8\.0 MiB, and was killed"):
        await replica.load(msgspec.structs.replace(spec(tmp_path, "hungry"), limit=8 << 20))


async def test_a_worker_whose_gpu_is_full_gives_up(replica: Replica, tmp_path: Path) -> None:
    """As torch says it, in the class that torch has for it."""
    with pytest.raises(OutOfMemory, match="ran out of memory on cpu: CUDA out of memory"):
        await replica.load(spec(tmp_path, "full", loads=False))
    await replica.load(spec(tmp_path, "full", loads=True))
    caller = Caller(replica)
    await caller.start("a")
    await caller.over()
    assert isinstance(caller.error, OutOfMemory)
    assert caller.error.detail.endswith("ran out of memory on cpu: CUDA out of memory")
    assert caller.events["a"] == [Log("begun")]  # and no end: it is to run again


async def test_a_segmentation_fault_leaves_its_traceback(replica: Replica, tmp_path: Path) -> None:
    report = await replica.load(spec(tmp_path))
    caller = Caller(replica)
    os.kill(report.pid, signal.SIGSEGV)
    lost = await caller.over()
    assert lost is not None
    assert "was killed by signal 11 (SIGSEGV)" in lost
    assert "Fatal Python error: Segmentation fault" in lost


async def test_a_worker_that_is_stuck_can_be_unloaded(replica: Replica, tmp_path: Path) -> None:
    report = await replica.load(spec(tmp_path, stream=True))
    caller = Caller(replica)
    await caller.start("a", text="x y", after=1, chunk_delay=0.01, hang=1000)
    await caller.begun("a")
    await asyncio.sleep(0.1)
    await caller.cancel("a")
    await replica.unload()
    assert await caller.over() is None
    assert caller.output("a") == ["x "]
    assert not is_running(report.pid)


async def test_much_output_arrives_whole_and_in_order(replica: Replica, tmp_path: Path) -> None:
    await replica.load(spec(tmp_path, stream=True))
    caller = Caller(replica)
    await caller.start("wide", text="x" * 3_000_000)
    await caller.start("long", text="word ", repeat=30_000)
    assert await caller.done("wide") == Done("succeeded")
    assert await caller.done("long") == Done("succeeded")
    assert caller.output("wide") == ["x" * 3_000_000]
    assert caller.output("long") == ["word "] * 30_000


async def test_a_model_that_says_why_it_cannot_load(replica: Replica, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed) as caught:
        await replica.load(spec(tmp_path, "refusing"))
    assert caught.value.detail.splitlines()[0] == "there are no weights at /nowhere; pull them first"
    assert "looking for weights" in caught.value.detail


async def test_a_model_that_breaks_while_it_loads(replica: Replica, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed) as caught:
        await replica.load(spec(tmp_path, "broken"))
    assert caught.value.detail.splitlines()[0] == "ZeroDivisionError: division by zero"
    assert "faulty_kinds.py" in caught.value.detail


async def test_a_worker_killed_while_it_loads(replica: Replica, zygote: Zygote, tmp_path: Path) -> None:
    loading = asyncio.create_task(replica.load(spec(tmp_path, "slow")))
    child = await _child(tmp_path)
    (mark,) = (zygote.run_dir / "hosts").iterdir()
    os.kill(int(mark.name), signal.SIGKILL)
    with pytest.raises(WorkerLost, match=r"killed by signal 9 .* while it loaded"):
        await loading
    await until_gone(child)


async def test_a_load_can_be_stopped(replica: Replica, zygote: Zygote, tmp_path: Path) -> None:
    loading = asyncio.create_task(replica.load(spec(tmp_path, "slow")))
    child = await _child(tmp_path)
    await replica.unload()
    with pytest.raises(LoadFailed, match="unloaded during its load"):
        await loading
    await until_gone(child)
    assert list((zygote.run_dir / "hosts").iterdir()) == []


async def test_unloading_closes_the_runner_and_ends_its_children(replica: Replica, tmp_path: Path) -> None:
    await replica.load(spec(tmp_path, "family"))
    child = await _child(tmp_path)
    assert is_running(child)
    await replica.unload()
    assert (tmp_path / "closed").exists()
    await until_gone(child)


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeper_gives_its_memory_back_and_wakes_with_its_weights(
    replica: Replica, tmp_path: Path, level: int
) -> None:
    size = 64 * MIB
    report = await replica.load(spec(tmp_path, weights=size))
    caller = Caller(replica)
    awake = resident(report.pid)
    assert await replica.sleep(level) == 0
    freed = awake - resident(report.pid)
    # At level 1 it is in main memory, which here is what the device is made of.
    assert freed < size / 2 if level == 1 else freed > size * 0.9
    await replica.wake()
    assert abs(resident(report.pid) - awake) < size / 10
    assert await caller.run("a", text="awake") == Done("succeeded")


async def test_what_runs_predictions_is_not_put_to_sleep(replica: Replica, tmp_path: Path) -> None:
    await replica.load(spec(tmp_path, weights=1000))
    caller = Caller(replica)
    await caller.start("a", delay=1000, print="begun")
    await caller.begun("a")
    with pytest.raises(SleepFailed, match="cannot sleep while 1 predictions run or wait"):
        await replica.sleep(1)
    await caller.cancel("a")
    assert await caller.done("a") == Done("canceled")


async def test_what_comes_while_its_model_sleeps_begins_when_it_is_awake(
    replica: Replica, tmp_path: Path
) -> None:
    await replica.load(spec(tmp_path, weights=1000))
    caller = Caller(replica)
    await replica.sleep(1)
    await caller.start("a", text="early")
    await replica.wake()
    assert await caller.done("a") == Done("succeeded")
    assert caller.output("a") == ["early"]


async def test_a_kind_that_cannot_sleep_refuses(replica: Replica, tmp_path: Path) -> None:
    report = await replica.load(spec(tmp_path, "family"))
    assert report.levels == []
    with pytest.raises(SleepFailed, match="does not support sleep level"):
        await replica.sleep(1)


def resident(pid: int) -> int:
    """Bytes of main memory that the process holds alone."""
    return int(psutil.Process(pid).memory_full_info().uss)


async def _child(folder: Path) -> int:
    """The process id that a runner of ``tests.support.faulty_kinds`` has noted."""
    note = folder / "child"
    await until(lambda: note.exists() and note.read_text())
    return int(note.read_text())
