"""Run models in this process, without replicas, worker processes or Ray, for unit tests of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from appliance.cluster import node_spec
from appliance.cluster.base import AdoptedModel, NodeConnection, NodeFolders, PartState
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import NodeLost, PredictionFailed, SleepFailed, WorkerLost
from appliance.domain.prediction import Done, Emitted, Event, Job, Output
from appliance.runners import runner_class
from appliance.runners.base import LoadSpec, Runner, Sleeper
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.process import output_files

_Sent = list[Emitted] | EngineMetrics | MemoryUsage | WorkerLost | None


class _Loaded:
    def __init__(self, spec: LoadSpec, runner: Runner) -> None:
        self.spec = spec
        self.runner = runner
        self.events: asyncio.Queue[_Sent] = asyncio.Queue()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.jobs: dict[str, Job] = {}  # those whose task has not begun


class LocalCluster:
    """A ``Cluster`` on the running loop. ``lose`` simulates a worker's death, ``take`` its memory use."""

    def __init__(self) -> None:
        self._loaded: dict[str, _Loaded] = {}
        self.acknowledged: list[str] = []
        self.limits: dict[str, int] = {}
        self.nodes: set[str] = set()  # other nodes
        self.copies: list[tuple[str, str]] = []  # models whose weights were copied, and the nodes

    async def adopt(self) -> list[AdoptedModel]:
        return []

    async def answers(self) -> bool:
        return True

    async def prepare(self, modules: list[str]) -> None:
        """Whatever is imported here stays imported."""

    async def copy_weights(self, spec: LoadSpec) -> int:
        self.copies.append((spec.model, spec.placement[0].partition("/")[0]))
        return 0

    def add_node(self, name: str, folders: NodeFolders, connection: NodeConnection, address: str) -> None:
        self.nodes.add(name)

    def remove_node(self, name: str, reason: str) -> None:
        self.nodes.remove(name)
        for model, loaded in list(self._loaded.items()):
            if any(device.startswith(f"{name}/") for device in loaded.spec.placement):
                self.lose(model, NodeLost(f"node {name} is lost: {reason}"))

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        runner = runner_class(spec.kind)(spec)
        await runner.setup()
        self._loaded[spec.model] = _Loaded(spec, runner)
        return frozenset(runner.levels) if isinstance(runner, Sleeper) else frozenset()

    async def sleep(self, model: str, level: int) -> int | None:
        runner = self._sleeper(model)
        if level not in runner.levels:
            raise SleepFailed(f"{model} does not support sleep level {level}")
        return await runner.sleep(level)

    async def wake(self, model: str) -> None:
        await self._sleeper(model).wake()

    def _sleeper(self, model: str) -> Sleeper:
        loaded = self._loaded.get(model)
        if loaded is None:
            raise WorkerLost(f"{model} is not loaded")
        if not isinstance(loaded.runner, Sleeper):
            raise SleepFailed(f"{model} does not support sleep")
        return loaded.runner

    def parts(self, model: str) -> list[PartState]:
        loaded = self._loaded.get(model)
        nodes = (
            [] if loaded is None or "/" not in loaded.spec.placement[0] else node_spec.nodes_of(loaded.spec)
        )
        return [PartState(node, "ready") for node in nodes] if len(nodes) > 1 else []

    async def unload(self, model: str) -> None:
        loaded = self._loaded.pop(model, None)
        if loaded is None:
            return
        for task in loaded.tasks.values():
            task.cancel()
        await asyncio.gather(*loaded.tasks.values(), return_exceptions=True)
        await loaded.runner.close()
        loaded.events.put_nowait(None)

    def submit(self, model: str, job: Job) -> None:
        loaded = self._loaded.get(model)
        if loaded is not None:
            loaded.jobs[job.id] = job
            loaded.tasks[job.id] = asyncio.get_running_loop().create_task(self._run(loaded, job))

    def cancel(self, model: str, id: str) -> None:
        loaded = self._loaded.get(model)
        if loaded is not None and id in loaded.tasks:
            loaded.tasks[id].cancel()
            if (job := loaded.jobs.pop(id, None)) is not None:  # its task has not begun, and never will
                del loaded.tasks[id]
                loaded.events.put_nowait([Emitted(id, job.attempt, 1, Done("canceled"))])

    def acknowledge(self, model: str, id: str) -> None:
        self.acknowledged.append(id)

    def stored(self, model: str, id: str, attempt: int, n: int) -> None:
        """Do nothing: this cluster adopts no predictions."""

    def discard(self, model: str, id: str) -> None:
        self.cancel(model, id)

    def limit(self, model: str, memory: int) -> None:
        self.limits[model] = memory

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        loaded = self._loaded.get(model)
        if loaded is None:
            raise WorkerLost(f"{model} is not loaded")
        queue = loaded.events
        while (batch := await queue.get()) is not None:
            if isinstance(batch, WorkerLost):
                raise batch
            yield batch

    async def close(self) -> None:
        """Unload every model, because this process holds them."""
        for model in list(self._loaded):
            await self.unload(model)

    def take(self, model: str, memory: int) -> None:
        """Simulate a worker process that takes ``memory`` bytes of main memory."""
        self._loaded[model].events.put_nowait(MemoryUsage(memory))

    def measure(self, model: str, metrics: EngineMetrics) -> None:
        """Simulate a message of the inference engine."""
        self._loaded[model].events.put_nowait(metrics)

    def lose(self, model: str, reason: str | WorkerLost) -> None:
        """Simulate the death of the worker process: its predictions stop without an end event."""
        loaded = self._loaded.pop(model)
        for task in loaded.tasks.values():
            task.cancel()
        loaded.events.put_nowait(WorkerLost(reason) if isinstance(reason, str) else reason)

    async def _run(self, loaded: _Loaded, job: Job) -> None:
        del loaded.jobs[job.id]
        n = 0

        def emit(event: Event) -> None:
            nonlocal n
            n += 1
            loaded.events.put_nowait([Emitted(job.id, job.attempt, n, event)])

        try:
            async for event in loaded.runner.run(job):
                if isinstance(event, Output) and output_files.has_files(event):
                    event = await output_files.take_over(job, event)  # noqa: PLW2901 - the same event
                emit(event)
        except asyncio.CancelledError:
            if loaded.spec.model in self._loaded:
                emit(Done("canceled"))
            raise
        except PredictionFailed as error:
            emit(Done("failed", error.detail))
        else:
            emit(Done("succeeded"))
        finally:
            loaded.tasks.pop(job.id, None)
