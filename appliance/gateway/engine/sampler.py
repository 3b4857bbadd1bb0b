"""Samples the machine every few seconds, for the charts of the last hour."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from appliance import machine
from appliance.domain import usage
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.prediction import Prediction
from appliance.machine import Device
from appliance.machine.gpus import Gpus
from appliance.observability.history import INTERVAL, History, LoadDone, Sample
from appliance.observability.metrics import WORKER_ENDED, model_name
from appliance.protocols.admin_types import SchedulerStatus
from appliance.scheduler import Event, EventKind

_log = logging.getLogger(__name__)

_LOADED: Final = (EventKind.READY, EventKind.WOKEN)


class Sampler:
    """Fills the history of one gateway. Use only on its event loop."""

    def __init__(self, history: History, devices: Sequence[Device] = (), gpus: Gpus | None = None) -> None:
        """``devices`` are the GPUs that are measured with ``gpus``."""
        self.history = history
        self._devices = devices
        self._gpus = gpus
        self._task: asyncio.Task[None] | None = None
        # Shares of the KV caches in use, by key of the scheduler
        self._kv_cache: dict[str, float] = {}  # now
        self._kv_cache_peaks: dict[str, float] = {}  # the highest since the last sample
        #: Models whose inference engine reports metrics -> tokens generated since the last sample.
        self._tokens: dict[str, float] = {}

    def start(self, status: Callable[[], SchedulerStatus]) -> None:
        """Take samples of ``status`` until ``close``."""
        self._task = asyncio.get_running_loop().create_task(self._run(status))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def count_event(self, event: Event) -> None:
        """Record loads, and drop the KV-cache usage of models whose worker process has ended."""
        if event.kind in WORKER_ENDED:
            self._kv_cache.pop(event.model, None)
        if event.kind in _LOADED and event.seconds is not None:
            self.history.add_load(LoadDone(time.time(), model_name(event.model), round(event.seconds, 3)))

    def count_prediction(self, record: Prediction) -> None:
        """Count the output tokens of a prediction that has ended; ignore other changes of ``record``.

        If the engine of the model reports metrics, ``count_engine`` counts its tokens.
        """
        if record.model in self._tokens:
            return
        if record.status.terminal and record.started_at is not None and record.completed_at is not None:
            count = usage.count(record.metrics.get("output_token_count"))
            self.history.add_tokens(record.model, count, record.started_at, record.completed_at)

    def count_engine(self, key: str, metrics: EngineMetrics) -> None:
        """Count the tokens and note the KV cache of the model with this key of the scheduler."""
        model = model_name(key)
        self._tokens[model] = self._tokens.get(model, 0.0) + metrics.generation_tokens
        self._kv_cache[key] = metrics.kv_cache_usage
        self._kv_cache_peaks[key] = max(metrics.kv_cache_usage, self._kv_cache_peaks.get(key, 0.0))

    async def _run(self, status: Callable[[], SchedulerStatus]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                self.history.add(self.sample(status(), time.time()))
            except Exception:  # noqa: BLE001  # a failed sample must not end all later ones
                _log.exception("the machine could not be sampled: its history has a gap")
            due = max(due + INTERVAL, loop.time())  # after a pause of the process, missed samples are skipped
            await asyncio.sleep(due - loop.time())

    def sample(self, status: SchedulerStatus, now: float) -> Sample:
        peaks, self._kv_cache_peaks = self._kv_cache_peaks, {**self._kv_cache}
        tokens, self._tokens = self._tokens, dict.fromkeys(self._tokens, 0.0)
        return Sample(
            at=now,
            reserved={device.name: _by_model(device.reserved) for device in status.devices},
            foreign={device.name: device.foreign for device in status.devices if device.foreign},
            **self._measurements(),
            queued={model.name: model.queued for model in status.models if model.queued},
            running={model.name: model.running for model in status.models if model.running},
            kv_cache=_highest_by_model(peaks),
            tokens={model: count for model, count in tokens.items() if count},
            available=machine.available_memory(),
        )

    def _measurements(self) -> dict[str, Any]:
        """Return the fields of a sample that NVML measures, without GPUs that do not have a value."""
        gpus = self._gpus
        if gpus is None:
            return {}
        measures: dict[str, Callable[[str], float | None]] = {
            "utilisation": gpus.utilisation,
            "power": gpus.power,
            "temperature": gpus.temperature,
            "used": gpus.used,
        }
        return {
            name: {
                device.name: value
                for device in self._devices
                if (value := measure(device.local_name)) is not None
            }
            for name, measure in measures.items()
        }


def _by_model(reserved: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of each model: the sum over its instances."""
    found: dict[str, int] = {}
    for key, size in reserved.items():
        found[model_name(key)] = found.get(model_name(key), 0) + size
    return found


def _highest_by_model(peaks: Mapping[str, float]) -> dict[str, float]:
    """Return the highest share of each model, without models that use nothing."""
    found: dict[str, float] = {}
    for key, share in peaks.items():
        if share > 0:
            found[model_name(key)] = max(share, found.get(model_name(key), 0.0))
    return found
