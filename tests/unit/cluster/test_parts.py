"""A model on several machines, without Ray: real replicas, with scripted worker processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus

from appliance.cluster import parts as module
from appliance.cluster.base import AdoptedModel
from appliance.cluster.ray import RayCluster
from appliance.cluster.runner_replica import RunnerReplica
from appliance.domain.errors import LoadFailed, NodeLost, OutOfMemory, WorkerLost
from appliance.domain.prediction import Job
from appliance.runners.base import LoadSpec, Part
from appliance.worker.protocol import Run, WorkerFailed, WorkerReady
from tests.support.node_connection import LocalNode
from tests.support.scripted_worker import ScriptedWorker, done, output
from tests.unit.worker.conftest import workers  # noqa: F401  # a fixture

MODEL = "a/large"
ADDRESSES = {"head": "10.9.0.1", "box": "10.9.0.2", "third": "10.9.0.3"}


class Handle:
    """A Serve handle whose replica is in this process."""

    def __init__(self, machines: Machines, name: str, zygote_socket: str, run_dir: str) -> None:
        self._machines = machines
        self.node = name.removeprefix("runner-").rpartition("-")[0] or "head"
        self.replica = RunnerReplica(name, zygote_socket, run_dir)

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Awaitable[Any]:
            return asyncio.ensure_future(self._call(method, arguments))

        return SimpleNamespace(remote=remote)

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self._machines.calls.append((self.node, method))
        if (event := self._machines.held.get((self.node, method))) is not None:
            await event.wait()
        return await getattr(self.replica, method)(*arguments)


class Machines:
    """A head and two nodes, with replicas that outlive the gateway's ``cluster``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: list[ScriptedWorker]) -> None:  # noqa: F811
        self.folder = folder
        self.workers = workers
        self.handles: dict[str, Handle] = {}  # by name of the replica, as Serve has them
        self.created: list[Handle] = []
        self.calls: list[tuple[str, str]] = []  # nodes and methods
        self.held: dict[tuple[str, str], asyncio.Event] = {}  # calls on these nodes wait for the event
        self.nodes = {name: LocalNode(folder / name) for name in ("box", "third")}
        self.reading: asyncio.Task[None] | None = None
        (folder / "head" / "run").mkdir(parents=True)
        monkeypatch.setattr(serve, "run_many", self._run_many)
        monkeypatch.setattr(serve, "delete", self._delete)
        monkeypatch.setattr(serve, "get_app_handle", lambda name: self.handles[name])
        monkeypatch.setattr(serve, "status", self._status)
        self.open()

    def open(self, *nodes: str) -> None:
        """Start a gateway, with these nodes; without arguments with all."""
        run_dir = self.folder / "head" / "run"
        self.cluster = RayCluster(
            run_dir / "zygote.sock", run_dir, node="head", address=ADDRESSES["head"],
            outputs=self.folder / "head" / "outputs", ports=range(20000, 20002),
        )  # fmt: skip
        for name in nodes or self.nodes:
            self.cluster.add_node(name, self.nodes[name].folders, self.nodes[name], ADDRESSES[name])
        self.received: list[Any] = []

    def _run_many(self, targets: list[Any], **_: Any) -> list[Handle]:
        handle = Handle(self, *targets[0].target._bound_deployment.init_args)
        self.handles[targets[0].name] = handle
        self.created.append(handle)
        return [handle]

    def _delete(self, name: str, **_: Any) -> None:
        self.handles.pop(name, None)

    def _status(self) -> SimpleNamespace:
        running = SimpleNamespace(status=ApplicationStatus.RUNNING)
        return SimpleNamespace(applications=dict.fromkeys(self.handles, running))

    def worker(self, node: str) -> ScriptedWorker:
        """Return the last worker process that was started on a node."""
        return [each for each in self.workers if _part(each).address == ADDRESSES[node]][-1]

    def handle(self, node: str) -> Handle:
        """Return the replica of the part on a node."""
        return self.handles[self.cluster._parts[MODEL].links[list(ADDRESSES).index(node)].name]

    def hold(self, node: str, method: str) -> asyncio.Event:
        """Let calls of ``method`` on a node wait for the returned event."""
        event = self.held[node, method] = asyncio.Event()
        return event

    async def until_started(self, count: int = 3) -> None:
        await until(lambda: len(self.workers) == count)

    async def loaded(self) -> None:
        await self.cluster.load(spec())

    def follow(self) -> asyncio.Task[None]:
        """Read the events as the engine does."""

        async def read() -> None:
            while True:
                async for message in self.cluster.events(MODEL):
                    self.received.append(message)

        self.reading = asyncio.ensure_future(read())
        return self.reading

    async def connected(self) -> None:
        """Wait until the events of all parts are read."""
        await until(lambda: all(each.replica._replica._send is not None for each in self.of_parts()))

    def of_parts(self) -> list[Handle]:
        return [self.handle(node) for node in ADDRESSES]

    @property
    def running(self) -> list[str]:
        """The nodes with a worker process."""
        return [node for node in ADDRESSES if any(self._runs_on(each, node) for each in self.workers)]

    def _runs_on(self, worker: ScriptedWorker, node: str) -> bool:
        return _part(worker).address == ADDRESSES[node] and not worker.end.done()

    async def close(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.gather(self.reading, return_exceptions=True)
        await self.cluster.close()
        for handle in self.created:
            await handle.replica.unload()
            if handle.replica._server is not None:
                handle.replica._server.close()


@pytest.fixture
async def machines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: list[ScriptedWorker],  # noqa: F811
) -> Any:
    machines = Machines(tmp_path, monkeypatch, workers)
    yield machines
    await machines.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes not become ready by themselves."""
    monkeypatch.setattr(ScriptedWorker, "answers", ())


def spec(weights: Path | None = None) -> LoadSpec:
    return LoadSpec(
        model=MODEL, version="v", kind="echo", options={}, weights=None if weights is None else str(weights),
        device="cpu", placement=("head/cpu", "box/cpu", "third/cpu"), memory=1, threads=1, concurrency=1,
        cache="/h/cache/echo",
    )  # fmt: skip


def _part(worker: ScriptedWorker) -> Part:
    assert worker.spec.part is not None
    return worker.spec.part


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


# -- load ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow")
async def test_all_parts_are_loaded_at_once(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()  # none is ready
    assert not loading.done()
    for index, node in enumerate(ADDRESSES):
        sent = machines.worker(node).spec
        assert (sent.placement, sent.device) == (("cpu",), "cpu")
        leader = ADDRESSES["head"]
        assert sent.part == Part(index=index, count=3, address=ADDRESSES[node], leader=leader, port=20000)
        machines.worker(node).receive(WorkerReady())
        await until(lambda node=node: (node, "ready") in states(machines))  # type: ignore[misc]
        assert states(machines)[index + 1 :] == [(each, "loading") for each in list(ADDRESSES)[index + 1 :]]
    await loading
    await machines.cluster.unload(MODEL)
    assert states(machines) == []


def states(machines: Machines) -> list[tuple[str, str]]:
    return [(each.node, each.state) for each in machines.cluster.parts(MODEL)]


async def test_each_load_gets_the_next_port(machines: Machines) -> None:
    ports = []
    for _ in range(3):
        await machines.loaded()
        ports.append(_part(machines.worker("box")).port)
        await machines.cluster.unload(MODEL)
    assert ports == [20000, 20001, 20000]


async def test_the_port_of_a_loaded_model_is_not_used_again(machines: Machines) -> None:
    await machines.loaded()
    await adopt(machines)
    await machines.cluster.load(msgspec.structs.replace(spec(), model="a/other"))
    assert [_part(each).port for each in machines.workers] == [20000] * 3 + [20001] * 3


async def test_each_part_reads_the_weights_of_its_node(machines: Machines, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("weights")
    asked = spec(weights)
    for node in ("box", "third"):
        narrowed = msgspec.structs.replace(asked, placement=(f"{node}/cpu",))
        await machines.cluster.copy_weights(narrowed)
    await machines.cluster.load(asked)
    assert machines.worker("head").spec.weights == str(weights)
    copies = [str(machines.nodes[node].home / "weights" / "weights") for node in ("box", "third")]
    assert [machines.worker(node).spec.weights for node in ("box", "third")] == copies
    other = tmp_path / "other"
    other.touch()
    alone = msgspec.structs.replace(spec(other), model="a/other", placement=("box/cpu",))
    await machines.cluster.copy_weights(alone)
    assert machines.nodes["box"].kept == copies  # they are in use


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("node", ADDRESSES)
async def test_if_a_part_fails_the_others_are_unloaded(machines: Machines, node: str) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    others = [each for each in ADDRESSES if each != node]
    machines.worker(others[0]).receive(WorkerReady())
    machines.worker(node).receive(WorkerFailed("the file has a wrong format", False))
    with pytest.raises(LoadFailed, match=f"^on node {node}: the file has a wrong format") as failed:
        await loading
    assert failed.value.node == node
    assert machines.running == []


async def test_after_a_failed_load_the_model_can_be_loaded_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ScriptedWorker, "answers", (WorkerFailed("no", False),))
        with pytest.raises(LoadFailed):
            await machines.loaded()
    await machines.loaded()
    assert machines.running == list(ADDRESSES)
    one_machine = msgspec.structs.replace(spec(), placement=("box/cpu",))
    await machines.cluster.load(one_machine)  # models.yaml has changed
    assert [each.spec.part for each in machines.workers if not each.end.done()] == [None]
    machines.workers[:] = [each for each in machines.workers if each.spec.part is not None]


@pytest.mark.usefixtures("slow")
async def test_a_part_that_runs_out_of_memory_explains_the_failure_of_another(machines: Machines) -> None:
    """The leader sees a broken connection before the replica of the follower has seen the reason."""
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.hold("box", "unload")
    machines.worker("head").receive(WorkerFailed("connection closed by peer", False))
    await until(lambda: ("box", "unload") in machines.calls)
    machines.worker("box").receive(WorkerFailed("CUDA out of memory", True))
    await until(machines.cluster._parts[MODEL]._loads[1].done)
    with pytest.raises(OutOfMemory, match=r"^on node box: .*CUDA out of memory") as failed:
        await unheld(machines, "box", loading)
    assert failed.value.node == "box"


async def unheld(machines: Machines, node: str, work: asyncio.Future[None]) -> None:
    machines.held[node, "unload"].set()
    async with asyncio.timeout(60):
        await work


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("node", ["box", "third"])
async def test_a_node_that_is_lost_during_the_load(machines: Machines, node: str) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.cluster.remove_node(node, "no heartbeat")
    with pytest.raises(NodeLost, match=f"node {node} is lost: no heartbeat") as failed:
        await loading
    assert failed.value.node == node
    assert [each for each in machines.running if each != node] == []
    with pytest.raises(NodeLost, match=f"node {node} is lost") as failed:
        await machines.loaded()
    assert failed.value.node == node


@pytest.mark.usefixtures("slow")
async def test_a_loaded_part_that_ends_while_another_is_still_loading(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.worker("box").receive(WorkerReady())
    await until(lambda: ("box", "ready") in states(machines))
    machines.worker("box").die("was killed by signal 9")
    with pytest.raises(WorkerLost, match=r"^on node box: .* was killed by signal 9"):
        await asyncio.wait_for(loading, 60)
    assert machines.running == []


@pytest.mark.usefixtures("slow")
async def test_the_node_of_a_loaded_part_is_lost_while_another_is_still_loading(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.worker("box").receive(WorkerReady())
    await until(lambda: ("box", "ready") in states(machines))
    machines.cluster.remove_node("box", "no heartbeat")
    with pytest.raises(NodeLost, match="node box is lost: no heartbeat"):
        await asyncio.wait_for(loading, 60)


@pytest.mark.usefixtures("slow")
async def test_a_lost_node_explains_the_failure_of_another_part(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.hold("box", "unload")  # it does not answer
    machines.worker("head").receive(WorkerFailed("connection closed by peer", False))
    await until(lambda: ("box", "unload") in machines.calls)
    machines.cluster.remove_node("box", "no heartbeat")
    with pytest.raises(NodeLost, match="node box is lost"):
        await loading


@pytest.mark.usefixtures("slow")
async def test_a_load_that_takes_too_long_ends_all_parts(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.worker("head").receive(WorkerReady())
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await machines.cluster.unload(MODEL)  # as the engine does
    assert machines.running == []


@pytest.mark.usefixtures("slow")
async def test_an_unload_during_the_load(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.worker("box").receive(WorkerReady())
    await machines.cluster.unload(MODEL)
    assert machines.running == []
    with pytest.raises(LoadFailed, match=f"model {MODEL} was unloaded during its load"):
        await loading


@pytest.mark.usefixtures("slow")
async def test_an_unload_while_a_part_waits_for_a_replica(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = machines.cluster._pools["third"]
    monkeypatch.setattr(pool, "take_spare", asyncio.Event().wait)  # for ever
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started(2)
    await machines.cluster.unload(MODEL)
    with pytest.raises(LoadFailed, match="was unloaded during its load"):
        await loading
    assert machines.running == []


async def test_a_load_that_arrives_after_its_unload_is_ended(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve does not keep the order of calls."""
    monkeypatch.setattr(module, "_UNLOAD_AGAIN", 0.01)
    await machines.loaded()
    await machines.cluster.unload(MODEL)
    late = machines.hold("third", "load")
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started(5)
    unloading = asyncio.ensure_future(machines.cluster.unload(MODEL))
    await until(lambda: machines.calls.count(("third", "unload")) == 2)
    monkeypatch.setattr(ScriptedWorker, "answers", ())
    late.set()
    await unloading
    with pytest.raises(LoadFailed):
        await loading
    assert machines.running == []


# -- events ----------------------------------------------------------------------------------------------


async def test_only_the_leader_gets_predictions(machines: Machines) -> None:
    await machines.loaded()
    machines.follow()
    machines.cluster.submit(MODEL, Job("a", 1, {}))
    await until(lambda: machines.worker("head").sent)
    assert machines.worker("head").sent == [Run([Job("a", 1, {})])]
    machines.worker("head").says(output("a", 1))
    await until(lambda: machines.received)
    assert machines.received == [[output("a", 1)]]
    assert [machines.worker(node).sent for node in ("box", "third")] == [[], []]


async def test_the_next_load_gets_no_events_of_the_last_one(machines: Machines) -> None:
    placed = msgspec.structs.replace(spec(), placement=("box/cpu", "head/cpu"))
    replicas = []
    for _ in range(2):
        machines.received.clear()
        await machines.cluster.load(placed)
        replicas.append(sorted(link.name for link in machines.cluster._parts[MODEL].links.values()))
        following = machines.follow()
        machines.cluster.submit(MODEL, Job("a", 1, {}))
        await until(lambda: machines.worker("box").sent)
        machines.worker("box").says(output("a", 1), done("a", 2))
        await until(lambda: machines.received)
        assert machines.received == [[output("a", 1), done("a", 2)]]
        for pool in machines.cluster._pools.values():  # without a spare, the next load gets the same replica
            await pool.close()
            pool._spares.clear()
        machines.worker("head").die("exited with code 3")
        with pytest.raises(WorkerLost, match="exited with code 3"):
            await following
    assert replicas[0] == replicas[1]


async def test_the_memory_peaks_of_all_parts_are_received(machines: Machines) -> None:
    await machines.loaded()
    for index, handle in enumerate(machines.of_parts()):
        worker = handle.replica._replica._loaded
        assert worker is not None
        worker.memory_monitor._main = 5 + index
    machines.follow()
    await until(lambda: len(machines.received) == 3)
    assert sorted(each.main for each in machines.received) == [5, 6, 7]


async def test_the_limit_of_main_memory_reaches_all_parts(machines: Machines) -> None:
    await machines.loaded()
    machines.follow()
    machines.cluster.limit(MODEL, 123)

    def limits() -> list[int | None]:
        loaded = [each.replica._replica._loaded for each in machines.of_parts()]
        return [each.memory_monitor.limit for each in loaded if each is not None]

    await until(lambda: limits() == [123, 123, 123])


@pytest.mark.parametrize("node", ADDRESSES)
async def test_if_a_part_ends_the_others_are_unloaded(machines: Machines, node: str) -> None:
    await machines.loaded()
    following = machines.follow()
    await machines.connected()
    machines.cluster.submit(MODEL, Job("a", 1, {}))
    await until(lambda: machines.worker("head").sent)
    machines.worker("head").says(output("a", 1))
    machines.worker(node).die("exited with code 3")
    with pytest.raises(WorkerLost, match=f"^on node {node}: .*exited with code 3") as failed:
        await asyncio.wait_for(following, 60)
    assert type(failed.value) is WorkerLost
    assert machines.received == [[output("a", 1)]]  # what came before is not lost
    assert machines.running == []
    await machines.loaded()
    assert machines.running == list(ADDRESSES)


async def test_a_part_that_ended_before_its_events_were_read(machines: Machines) -> None:
    await machines.loaded()
    machines.worker("box").die("exited with code 3")
    with pytest.raises(WorkerLost, match=r"^on node box: "):
        await asyncio.wait_for(machines.follow(), 60)
    assert machines.running == []


async def test_a_follower_that_runs_out_of_memory(machines: Machines) -> None:
    await machines.loaded()
    following = machines.follow()
    await machines.connected()
    machines.worker("box").receive(WorkerFailed("CUDA out of memory", True))
    machines.worker("box").die("ended")
    with pytest.raises(OutOfMemory, match=r"^on node box: .*CUDA out of memory"):
        await asyncio.wait_for(following, 60)
    assert machines.running == []


@pytest.mark.parametrize("node", ["box", "third"])
async def test_a_node_is_lost(machines: Machines, node: str) -> None:
    await machines.loaded()
    following = machines.follow()
    await machines.connected()
    machines.cluster.remove_node(node, "no heartbeat")
    with pytest.raises(NodeLost, match=f"^node {node} is lost: no heartbeat"):
        await asyncio.wait_for(following, 60)
    assert [each for each in machines.running if each != node] == []


async def test_the_connection_to_a_follower_breaks(machines: Machines) -> None:
    await machines.loaded()
    following = machines.follow()
    await machines.connected()
    machines.nodes["box"].sockets["runner-box-0.sock"].abort()
    with pytest.raises(NodeLost, match="the connection to the runner replica of a/large on node box broke"):
        await asyncio.wait_for(following, 60)
    assert machines.running == []
    await machines.loaded()
    assert machines.running == list(ADDRESSES)


async def test_an_unload_ends_all_parts_and_the_events(machines: Machines) -> None:
    await machines.loaded()
    ended = asyncio.Event()

    async def read() -> None:
        async for _ in machines.cluster.events(MODEL):
            pass
        ended.set()

    machines.reading = asyncio.ensure_future(read())
    await machines.connected()
    machines.hold("third", "unload")
    unloading = asyncio.ensure_future(machines.cluster.unload(MODEL))
    await until(lambda: machines.running == ["third"])  # the others do not wait for it
    assert not unloading.done()
    assert states(machines) == [(node, "ending") for node in ADDRESSES]
    await unheld(machines, "third", unloading)
    assert machines.running == []
    await ended.wait()
    with pytest.raises(WorkerLost, match="not loaded"):
        await anext(machines.cluster.events(MODEL))


async def test_an_unload_while_the_parts_end_waits_for_all_of_them(machines: Machines) -> None:
    await machines.loaded()
    following = machines.follow()
    await machines.connected()
    machines.hold("third", "unload")
    machines.worker("box").die("exited with code 3")
    await until(lambda: machines.running == ["third"])
    unloading = asyncio.ensure_future(machines.cluster.unload(MODEL))
    following.cancel()  # as the engine does
    await asyncio.gather(following, return_exceptions=True)
    assert not unloading.done()
    await unheld(machines, "third", unloading)
    assert machines.running == []
    assert [len(pool._spares) for pool in machines.cluster._pools.values()] == [1, 1, 1]


# -- a new gateway ---------------------------------------------------------------------------------------


async def adopt(machines: Machines, *nodes: str) -> list[AdoptedModel]:
    await machines.cluster.close()
    machines.open(*nodes)
    async with asyncio.timeout(60):
        return await machines.cluster.adopt()


async def test_a_new_gateway_adopts_all_parts(machines: Machines) -> None:
    await machines.loaded()
    machines.follow()
    machines.cluster.submit(MODEL, Job("a", 1, {}))
    await until(lambda: machines.worker("head").sent)
    assert machines.reading is not None
    machines.reading.cancel()
    (adopted,) = await adopt(machines)
    assert states(machines) == [(node, "ready") for node in ADDRESSES]
    assert (adopted.spec, adopted.held) == (spec(), frozenset({"a"}))
    assert machines.running == list(ADDRESSES)
    following = machines.follow()
    await machines.connected()
    machines.worker("head").says(output("a", 1))
    await until(lambda: machines.received)
    machines.worker("third").die("exited with code 3")
    with pytest.raises(WorkerLost, match=r"^on node third: "):
        await asyncio.wait_for(following, 60)
    assert machines.running == []


@pytest.mark.parametrize("node", ADDRESSES)
async def test_a_model_without_one_of_its_parts_is_not_adopted(machines: Machines, node: str) -> None:
    await machines.loaded()
    await machines.handle(node).replica.unload()
    assert await adopt(machines) == []
    assert machines.running == []
    await machines.loaded()
    assert machines.running == list(ADDRESSES)


@pytest.mark.parametrize("node", ADDRESSES)
async def test_a_model_with_a_part_that_has_ended_is_not_adopted(machines: Machines, node: str) -> None:
    await machines.loaded()
    machines.worker(node).die("exited with code 3")
    await until(lambda: machines.handle(node).replica._replica._loaded.lost)  # type: ignore[union-attr]
    assert await adopt(machines) == []
    assert machines.running == []


async def test_a_model_with_a_part_on_a_node_that_has_left_is_not_adopted(machines: Machines) -> None:
    await machines.loaded()
    assert await adopt(machines, "third") == []
    assert machines.running == ["box"]  # Serve ends its replica
    assert "runner-box-0" not in machines.handles
    machines.worker("box").die("was killed")


@pytest.mark.usefixtures("slow")
async def test_a_model_that_was_being_loaded_is_not_adopted(machines: Machines) -> None:
    loading = asyncio.ensure_future(machines.loaded())
    await machines.until_started()
    machines.worker("head").receive(WorkerReady())
    await until(lambda: machines.handle("head").replica._replica._loaded)
    loading.cancel()
    machines.cluster._parts[MODEL]._stop_soon().cancel()  # the gateway was killed
    assert await adopt(machines) == []
    assert machines.running == []


async def test_parts_of_different_loads_are_not_adopted(machines: Machines) -> None:
    await machines.loaded()
    former = spec_of(machines, "box")
    await machines.cluster.unload(MODEL)
    await machines.loaded()  # with another port
    handle = machines.handle("box")
    await handle.replica.unload()
    await handle.replica.load(msgspec.msgpack.encode(former), msgspec.msgpack.encode(spec()))
    assert machines.running == list(ADDRESSES)
    assert await adopt(machines) == []
    assert machines.running == []


def spec_of(machines: Machines, node: str) -> LoadSpec:
    return machines.worker(node).spec


async def test_a_node_that_is_lost_during_the_adoption(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machines.loaded()
    await machines.cluster.close()
    machines.open()
    machines.hold("third", "stats")  # it is asked last
    adopting = asyncio.ensure_future(machines.cluster.adopt())
    await until(lambda: machines.calls.count(("third", "stats")) == 2)
    machines.cluster.remove_node("box", "no heartbeat")
    machines.held["third", "stats"].set()
    assert await adopting == []
    assert [each for each in machines.running if each != "box"] == []
