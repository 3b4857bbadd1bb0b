"""The same arrivals under every policy, and what each made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final, NamedTuple

from appliance.scheduler import Capacity, Demand, Scheduler
from scripts.simulation.baselines import BASELINES
from scripts.simulation.machine import Machine, Outcome, Policy
from scripts.simulation.workload import WORKLOADS, Workload

APPLIANCE: Final = "appliance"


class Row(NamedTuple):
    """One policy on one workload, over all seeds."""

    workload: str
    policy: str
    layout: str  # which of the policy's layouts did best; empty where there is one only
    hit_rate: float  # share of predictions that waited for no load
    p50: float  # seconds that predictions waited; the median of the seeds, like all that follows
    p99: float
    longest: float
    loads: float
    moved: float  # bytes
    p99_of_seeds: tuple[float, ...]
    waits: tuple[float, ...]  # of the first seed, sorted

    def as_json(self) -> dict[str, Any]:
        """Without the single waits."""
        found = self._asdict()
        del found["waits"]
        return found


def appliance_scheduler(workload: Workload) -> Scheduler:
    """The appliance's scheduler, which is told what models.yaml says: sizes, and how many run at a time."""
    return Scheduler(
        [Capacity(device, memory) for device, memory in workload.devices.items()],
        [
            Demand(model=model.name, concurrency=model.kind.concurrency, memory=model.memory)
            for model in workload.models
        ],
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that ``share`` of the sorted values do not exceed; 0 for none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def policies() -> list[tuple[str, str, Callable[[Workload], Policy]]]:
    """Every policy in every layout."""
    found: list[tuple[str, str, Callable[[Workload], Policy]]] = [(APPLIANCE, "", appliance_scheduler)]
    for name, layouts in BASELINES.items():
        found += [(name, layout, make) for layout, make in layouts.items()]
    return found


def compare(
    names: Sequence[str], seeds: Sequence[int], seconds: float, progress: Callable[[], None]
) -> list[Row]:
    """All policies on these workloads; ``progress`` is told of every run that is done."""
    rows: list[Row] = []
    for name in names:
        worlds = [WORKLOADS[name](seed, seconds) for seed in seeds]
        best: dict[str, Row] = {}
        for policy, layout, make in policies():
            outcomes = []
            for world in worlds:
                outcomes.append(Machine(world, make(world)).run())
                progress()
            row = _row(name, policy, layout, outcomes)
            if policy not in best or row.p99 < best[policy].p99:
                best[policy] = row
        rows += best.values()
    return rows


def _row(workload: str, policy: str, layout: str, outcomes: Sequence[Outcome]) -> Row:
    waits = [sorted(outcome.waits) for outcome in outcomes]
    p99 = tuple(quantile(each, 0.99) for each in waits)
    return Row(
        workload,
        policy,
        layout,
        hit_rate=median(outcome.hits / max(1, len(outcome.waits)) for outcome in outcomes),
        p50=median(quantile(each, 0.5) for each in waits),
        p99=median(p99),
        longest=median(each[-1] if each else 0.0 for each in waits),
        loads=median(outcome.loads for outcome in outcomes),
        moved=median(outcome.moved for outcome in outcomes),
        p99_of_seeds=p99,
        waits=tuple(waits[0]),
    )
