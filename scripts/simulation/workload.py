"""What is simulated: models with sizes and times, and when predictions come, all by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

GIB: Final = 1024**3

DEVICE: Final = 80 * GIB
STARTUP: Final = 3.0  # seconds that any load takes
BANDWIDTH: Final = 2 * GIB  # bytes of weights a second
UNLOAD: Final = 0.5  # seconds
#: GiB on the device, and how many of 20 models are so large.
SIZES: Final = ((4, 6), (8, 5), (16, 4), (24, 3), (40, 2))


class Kind(NamedTuple):
    """What a prediction is like."""

    concurrency: int
    seconds: float  # mean of a run; runs are spread log-normally around it


LANGUAGE: Final = Kind(8, 3.0)
PICTURES: Final = Kind(1, 2.0)
EMBEDDINGS: Final = Kind(16, 0.2)


class SimulatedModel(NamedTuple):
    """One model."""

    name: str
    memory: int  # bytes
    kind: Kind

    @property
    def load_seconds(self) -> float:
        """What a load takes, alone on its device."""
        return STARTUP + self.memory / BANDWIDTH


class Request(NamedTuple):
    """One prediction."""

    at: float  # seconds
    id: str
    model: str
    seconds: float  # that it runs


class Workload(NamedTuple):
    """Everything that happens from outside."""

    name: str
    models: tuple[SimulatedModel, ...]
    devices: dict[str, int]  # bytes
    requests: tuple[Request, ...]

    def popularity(self) -> dict[str, float]:
        """Share of all requests by model: what an operator who plans by hand is taken to know."""
        counts = dict.fromkeys((model.name for model in self.models), 0)
        for request in self.requests:
            counts[request.model] += 1
        return {name: count / max(1, len(self.requests)) for name, count in counts.items()}


def fleet(rng: random.Random, count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[SimulatedModel]:
    """``count`` models in shuffled order; the order says nothing of size or kind."""
    total = sum(weight for _, weight in sizes)
    gib = [size for size, weight in sizes for _ in range(-(-count * weight // total))][:count]
    kinds = [(LANGUAGE, PICTURES, EMBEDDINGS)[number % 3] for number in range(count)]
    rng.shuffle(gib)
    rng.shuffle(kinds)
    return [
        SimulatedModel(f"m{number:02}", size * GIB, kind)
        for number, (size, kind) in enumerate(zip(gib, kinds, strict=True))
    ]


def _devices(count: int) -> dict[str, int]:
    return {f"gpu{number}": DEVICE for number in range(count)}


def requests_at(
    rng: random.Random, models: list[SimulatedModel], times: list[tuple[float, int]]
) -> tuple[Request, ...]:
    requests = []
    for number, (at, which) in enumerate(sorted(times)):
        model = models[which]
        requests.append(
            Request(at, f"p{number}", model.name, model.kind.seconds * rng.lognormvariate(-0.125, 0.5))
        )
    return tuple(requests)


def zipf_weights(count: int, exponent: float = 1.0) -> list[float]:
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def poisson(rng: random.Random, rate: float, seconds: float) -> list[float]:
    times, at = [], rng.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += rng.expovariate(rate)
    return times


def zipf(seed: int, seconds: float, *, rate: float = 1.0, name: str = "zipf") -> Workload:
    """50 models on 4 GPUs, a prediction a second, popularity by Zipf's law."""
    rng = random.Random(seed)
    models = fleet(rng, 50)
    times = [(at, rng.choices(range(50), zipf_weights(50))[0]) for at in poisson(rng, rate, seconds)]
    return Workload(name, tuple(models), _devices(4), requests_at(rng, models, times))


def crowded(seed: int, seconds: float) -> Workload:
    """The same with two predictions a second."""
    return zipf(seed, seconds, rate=2.0, name="crowded")


def drifting(seed: int, seconds: float) -> Workload:
    """50 models on 4 GPUs by Zipf's law; which models are popular changes every ten minutes."""
    rng = random.Random(seed)
    models = fleet(rng, 50)
    times = []
    order = list(range(50))
    for start in range(0, max(1, int(seconds)), 600):
        rng.shuffle(order)
        for at in poisson(rng, 1.0, min(600.0, seconds - start)):
            times.append((start + at, order[rng.choices(range(50), zipf_weights(50))[0]]))
    return Workload("drifting", tuple(models), _devices(4), requests_at(rng, models, times))


def bursts(seed: int, seconds: float) -> Workload:
    """50 models on 4 GPUs; every 6 s one of them, all alike, gets 2 to 8 predictions within 3 s."""
    rng = random.Random(seed)
    models = fleet(rng, 50)
    times = []
    for start in poisson(rng, 1 / 6, seconds):
        which = rng.randrange(50)
        times += [(start + rng.uniform(0, 3), which) for _ in range(rng.randint(2, 8))]
    return Workload("bursts", tuple(models), _devices(4), requests_at(rng, models, times))


def alternating(seed: int, seconds: float) -> Workload:
    """Ten models of 40 GiB on 4 GPUs, room for eight; ten clients ask in turn, one every 4 s."""
    rng = random.Random(seed)
    models = [SimulatedModel(f"m{number:02}", 40 * GIB, LANGUAGE) for number in range(10)]
    times = [(number * 4 + rng.uniform(0, 2), number % 10) for number in range(int(seconds / 4))]
    return Workload("alternating", tuple(models), _devices(4), requests_at(rng, models, times))


def duel(seed: int, seconds: float) -> Workload:
    """Two models that do not fit together on one GPU, and two clients that keep both busy: every 6 s each."""
    rng = random.Random(seed)
    models = [SimulatedModel(f"m{number:02}", 60 * GIB, LANGUAGE) for number in range(2)]
    times = [(at, which) for which in range(2) for at in poisson(rng, 1 / 6, seconds)]
    return Workload("duel", tuple(models), _devices(1), requests_at(rng, models, times))


WORKLOADS: Final[dict[str, Callable[[int, float], Workload]]] = {
    "zipf": zipf,
    "crowded": crowded,
    "drifting": drifting,
    "bursts": bursts,
    "alternating": alternating,
    "duel": duel,
}
