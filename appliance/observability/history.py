"""The last hour of the machine: one sample every ``INTERVAL`` seconds, in memory.

It is lost when the gateway restarts. Times are Unix seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

Number = TypeVar("Number", int, float)

#: Seconds between two samples.
INTERVAL: Final = 5.0
#: Seconds that samples are kept.
SPAN: Final = 3600.0
#: Number of samples that are kept.
SAMPLES: Final = int(SPAN / INTERVAL)
#: Loads that are kept at most; more in an hour would mean two in every second.
LOADS: Final = 5000


class Sample(msgspec.Struct, kw_only=True):
    """The machine at one time. Models without a value are left out of the dicts."""

    at: float
    reserved: dict[str, dict[str, int]] = {}  # device -> model -> bytes
    foreign: dict[str, int] = {}  # device -> bytes that other programs use
    utilisation: dict[str, float] = {}  # device -> share of the time that it computed, 0 to 1
    power: dict[str, float] = {}  # GPU -> watts
    temperature: dict[str, float] = {}  # GPU -> degrees Celsius
    used: dict[str, int] = {}  # GPU -> bytes that all programs use
    queued: dict[str, int] = {}  # model -> predictions
    running: dict[str, int] = {}  # model -> predictions
    kv_cache: dict[str, float] = {}  # model -> highest share of its KV cache in use since the sample before
    tokens: dict[str, float] = {}  # model -> output tokens since the sample before
    available: int = 0  # bytes of main memory
    seconds: float = INTERVAL  # duration that the sample stands for


class LoadDone(msgspec.Struct, frozen=True):
    """A model that was loaded or woken."""

    at: float
    model: str
    seconds: float


class History:
    """Keeps the samples and loads of the last hour. Use only on the gateway's event loop."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._loads: deque[LoadDone] = deque(maxlen=LOADS)

    def add(self, sample: Sample) -> None:
        """Add a sample that is newer than all others."""
        self._samples.append(sample)
        while self._samples[0].at <= sample.at - SPAN:
            self._samples.popleft()
        while self._loads and self._loads[0].at <= sample.at - SPAN:
            self._loads.popleft()

    def add_load(self, done: LoadDone) -> None:
        self._loads.append(done)

    def add_tokens(self, model: str, count: int, begin: float, end: float) -> None:
        """Spread the output tokens of a run that has ended evenly over the samples during the run.

        Tokens before the first sample are not counted. Tokens since the last sample count in the last sample.
        """
        if not self._samples or count <= 0:
            return
        end = max(end, begin + 1e-6)
        newest = self._samples[-1]
        for sample in reversed(self._samples):
            until = end if sample is newest else min(end, sample.at)
            share = (until - max(begin, sample.at - INTERVAL)) / (end - begin)
            if share > 0:
                sample.tokens[model] = sample.tokens.get(model, 0.0) + count * share
            if sample.at <= begin:
                break

    @property
    def newest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def loads(self) -> list[LoadDone]:
        return [*self._loads]

    def samples(self, points: int = SAMPLES) -> list[Sample]:
        """Return at most ``points`` samples, oldest first: each merged from the same number of samples.

        A merged sample has the time of its last sample, the sums of the tokens, the least available memory,
        the means of utilisation and power, and the highest of all other values. The first one may have fewer
        parts.
        """
        found = [*self._samples]
        size = -(-len(found) // points) or 1
        first = len(found) % size
        groups = [found[:first]] if first else []
        groups += [found[start : start + size] for start in range(first, len(found), size)]
        return [_merged(group) for group in groups]


def _merged(group: Sequence[Sample]) -> Sample:
    if len(group) == 1:
        return group[0]
    devices = {device for each in group for device in each.reserved}
    tokens: dict[str, float] = {}
    for each in group:
        for model, count in each.tokens.items():
            tokens[model] = tokens.get(model, 0.0) + count
    return Sample(
        at=group[-1].at,
        reserved={
            device: _highest([each.reserved.get(device, {}) for each in group]) for device in sorted(devices)
        },
        foreign=_highest([each.foreign for each in group]),
        utilisation=_mean([each.utilisation for each in group]),
        power=_mean([each.power for each in group]),
        temperature=_highest([each.temperature for each in group]),
        used=_highest([each.used for each in group]),
        queued=_highest([each.queued for each in group]),
        running=_highest([each.running for each in group]),
        kv_cache=_highest([each.kv_cache for each in group]),
        tokens=tokens,
        seconds=sum(each.seconds for each in group),
        available=min(each.available for each in group),
    )


def _mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for each in values:
        for name, value in each.items():
            found.setdefault(name, []).append(value)
    return {name: sum(measured) / len(measured) for name, measured in found.items()}


def _highest(values: Sequence[dict[str, Number]]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for each in values:
        for name, value in each.items():
            found[name] = max(value, found.get(name, value))
    return found
