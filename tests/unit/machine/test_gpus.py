"""Measurements of GPUs, from a simulated NVML."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from appliance.gateway.engine.sampler import Sampler
from appliance.machine import Device
from appliance.machine.gpus import Gpus
from appliance.observability.history import History
from appliance.protocols.admin_types import SchedulerStatus

GPUS = tuple(Device(name=f"cuda:{at}", kind="cuda", memory=1, label="A GPU") for at in range(2))
STATUS = SchedulerStatus(draining=False, queued=0, devices=[], models=[], decisions=[])


class NVML:
    """Answers like pynvml about two GPUs; the second one can measure neither power nor temperature."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - pynvml's name
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802 - pynvml's name
        return SimpleNamespace(total=100, free=70)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802 - pynvml's name
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802 - pynvml's name
        return 310_500 if handle == 0 else self._refuse()

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802 - pynvml's name
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 64 if handle == 0 else self._refuse()

    def _refuse(self) -> int:
        raise self.NVMLError("Not Supported")


def test_measurements_are_sampled_and_unsupported_ones_are_left_out() -> None:
    sampler = Sampler(History(), GPUS, Gpus(NVML()))
    sample = sampler.sample(STATUS, 1.0)
    assert sample.utilisation == {"cuda:0": 0.25, "cuda:1": 0.25}
    assert sample.used == {"cuda:0": 30, "cuda:1": 30}
    assert (sample.power, sample.temperature) == ({"cuda:0": 310.5}, {"cuda:0": 64.0})


def test_without_nvml_nothing_is_measured() -> None:
    sample = Sampler(History(), GPUS[:1]).sample(STATUS, 1.0)
    assert (sample.utilisation, sample.power, sample.temperature, sample.used) == ({}, {}, {}, {})
