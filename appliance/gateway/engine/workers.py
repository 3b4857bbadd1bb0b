"""Reads the events of worker processes, puts models to sleep, wakes them, and stops worker processes.

A worker process that is being stopped is never reported as lost. Events of a stopped process are not read,
because its model may already be loaded in another process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import NodeLost, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.units import readable_bytes
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.device_memory import DeviceMemory
from appliance.gateway.engine.loads import Loads
from appliance.gateway.engine.memory_profiles import MemoryProfiles, OutOfMemoryAdvice
from appliance.gateway.engine.predictions import Predictions
from appliance.gateway.engine.tasks import Tasks
from appliance.scheduler import Residency, Sleep, Unload
from appliance.worker.memory_monitor import MemoryUsage

_log = logging.getLogger(__name__)

#: States in which a model has a worker process that is not being stopped.
_PRESENT: Final = frozenset(Residency) - {Residency.COLD, Residency.LOADING, Residency.UNLOADING}


class Workers:
    """The worker processes of all loaded models."""

    def __init__(
        self,
        dependencies: Dependencies,
        tasks: Tasks,
        loads: Loads,
        memory_profiles: MemoryProfiles,
        device_memory: DeviceMemory,
        predictions: Predictions,
        *,
        decide: Callable[[], None],
        decide_after_end: Callable[[], None],
    ) -> None:
        self._dependencies = dependencies
        self._cluster = dependencies.cluster
        self._scheduler = dependencies.scheduler
        self._tasks = tasks
        self._loads = loads
        self._memory_profiles = memory_profiles
        self._device_memory = device_memory
        self._predictions = predictions
        self._decide = decide
        self._decide_after_end = decide_after_end
        self._readers: dict[str, asyncio.Task[None]] = {}  # by loaded model
        self._transitions: dict[str, asyncio.Task[None]] = {}  # by model that falls asleep or wakes

    def follow(self, model: str) -> None:
        """Read the events of a loaded model's worker process until it is stopped or lost."""
        self._readers[model] = self._tasks.spawn(self._follow(model))

    async def _follow(self, model: str) -> None:
        try:
            while self._present(model):  # another reader of the same events may have ended this stream
                await self._read(model)
        except WorkerLost as error:
            if self._present(model):
                self._lost(model, error)
        except Exception as error:  # noqa: BLE001  # after any error the predictions that run there must end
            _log.exception("the events of model %s could not be read", model, extra={"model": model})
            self._tasks.spawn(self.kill(model, f"its events could not be read: {error}"))

    async def _read(self, model: str) -> None:
        async for batch in self._cluster.events(model):
            if isinstance(batch, MemoryUsage):
                self._memory_profiles.measured(model, batch)
                self._decide()
                continue
            if isinstance(batch, EngineMetrics):
                self._dependencies.on_engine_metrics(model, batch)
                continue
            freed = [self._predictions.apply(model, emitted) for emitted in batch]
            if any(freed):  # else, for example at each token, the scheduler has nothing to do
                self._decide_after_end()

    def _present(self, model: str) -> bool:
        return self._scheduler.residency(model) in _PRESENT

    def _lost(self, model: str, error: WorkerLost) -> None:
        if model in self._transitions:  # its request must not reach the model's next worker process
            self._transitions.pop(model).cancel()
        if isinstance(error, OutOfMemory):
            verdict = self._memory_profiles.out_of_memory(model, error)
            self._gone(model, verdict.sentence, verdict)
        else:
            self._gone(model, error.detail, caused_by_node=isinstance(error, NodeLost))

    def _gone(
        self, model: str, reason: str, oom: OutOfMemoryAdvice | None = None, *, caused_by_node: bool = False
    ) -> None:
        """Handle the end of a worker process. ``caused_by_node``: no prediction is the cause."""
        running = self._scheduler.running(model)
        _log.error(
            "lost the worker process of model %s, which ran %d predictions: %s",
            model, len(running), reason, extra={"model": model},
        )  # fmt: skip
        self._scheduler.lost(model, time.monotonic(), reason)
        self._memory_profiles.unloaded(model)
        for ids in [[id] for id in running] if caused_by_node else [running]:
            self._predictions.worker_lost(ids, reason, oom)
        self._predictions.end_outdated()
        self._decide()

    def sleep(self, decided: Sleep) -> None:
        """Put a model to sleep; if that fails, kill its worker process and disable sleep for the model."""
        asleep = partial(self._fall_asleep, decided)
        self._transitions[decided.model] = self._tasks.spawn(
            self._transition(decided.model, asleep, "asleep")
        )

    def wake(self, model: str) -> None:
        """Wake a model; if that fails, kill its worker process and disable sleep for the model."""
        awake = partial(self._awake, model)
        self._transitions[model] = self._tasks.spawn(self._transition(model, awake, "awake"))

    async def _transition(
        self, model: str, transition: Callable[[], Awaitable[str | None]], target: str
    ) -> None:
        problem = await self._problem_of(model, transition, target)
        self._transitions.pop(model, None)
        if problem is not None and self._present(model):
            self._scheduler.sleep_failed(model)
            await self.kill(model, problem)
        self._loads.reload_model(model)
        self._decide()

    async def _problem_of(
        self, model: str, transition: Callable[[], Awaitable[str | None]], target: str
    ) -> str | None:
        """Run a transition to the state ``target``; return None, or the reason to kill the worker process."""
        timeout = self._dependencies.limits.load_timeout
        try:
            async with asyncio.timeout(timeout):
                return await transition()
        except TimeoutError:
            return f"it was not {target} after {timeout:g} s"
        except SleepFailed as error:
            return error.detail
        except WorkerLost:
            return None  # the reader of its events gets this error too, and handles it
        except Exception as error:  # noqa: BLE001  # else the predictions of the model would wait for ever
            _log.exception("model %s did not become %s", model, target, extra={"model": model})
            return f"it did not become {target}: {error}"

    async def _fall_asleep(self, decided: Sleep) -> str | None:
        left = await self._cluster.sleep(decided.model, decided.level)
        if left is not None and left > decided.residue:
            held, allowed = readable_bytes(left), readable_bytes(decided.residue)
            return f"asleep, it still used {held} of device memory, more than the allowed {allowed}"
        if self._scheduler.residency(decided.model) is Residency.FALLING_ASLEEP:  # not lost meanwhile
            self._scheduler.asleep(decided.model, time.monotonic())
        return None

    async def _awake(self, model: str) -> None:
        await self._cluster.wake(model)
        if self._scheduler.residency(model) is Residency.WAKING:  # not lost meanwhile
            self._scheduler.woken(model, time.monotonic())
            self._loads.resolve(model)

    async def unload(self, decided: Unload) -> None:
        """Stop the worker process of a model without running predictions; return once its memory is free."""
        model = decided.model
        before = self._device_memory.usage_of_gpus(decided.devices)
        await self._stop(model)
        await self._device_memory.wait_until_freed(decided, before)
        self._scheduler.unloaded(model, time.monotonic())
        if before:
            self._device_memory.refresh()
        self._memory_profiles.keep(model)
        self._memory_profiles.unloaded(model)
        self._decide()

    async def kill(self, model: str, reason: str) -> None:
        """Stop a worker process despite running predictions; do nothing if it has stopped or is stopping."""
        if not self._present(model):
            return
        self._scheduler.stopping(model, time.monotonic(), reason)
        await self._stop(model)
        self._gone(model, f"its worker process was stopped: {reason}")

    async def _stop(self, model: str) -> None:
        await self._cluster.unload(model)
        reader = self._readers.pop(model, None)
        if reader is not None:
            reader.cancel()
