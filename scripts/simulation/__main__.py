"""The command line of scripts/simulate."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scripts.simulation.baselines import BASELINES
from scripts.simulation.comparison import APPLIANCE, Row, compare, policies
from scripts.simulation.scale import ClusterSize, DecisionTimes, growth, measure
from scripts.simulation.workload import BANDWIDTH, DEVICE, GIB, SIZES, STARTUP, UNLOAD, WORKLOADS

WIDTH: Final = 120  # columns where the output goes to a file

#: Upper ends of the histogram's bars, in seconds.
BARS: Final = (0.0, 1.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, float("inf"))


def _parser() -> argparse.ArgumentParser:
    sizes = ", ".join(f"{share / 20:.0%} {size} GiB" for size, share in SIZES)
    workloads = "\n".join(f"  {name:12} {make.__doc__}" for name, make in WORKLOADS.items())
    baselines = "\n".join(f"  {name}: {', '.join(layouts)}" for name, layouts in BASELINES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Replays workloads in simulated time against the scheduler of the appliance and\n"
        "policies of other systems, with the same arrivals, memory and seeds. Prints the waits of\n"
        "predictions, how many of them found their model ready, the number of loads, and the bytes\n"
        "that loads moved.",
        epilog=f"workloads:\n{workloads}\n\n"
        f"policies of other systems, each in the layout that is best for the workload:\n{baselines}\n\n"
        f"assumptions: GPUs of {DEVICE // GIB} GiB. A load takes {STARTUP:g} s, plus one second for each "
        f"{BANDWIDTH // GIB} GiB; an unload {UNLOAD:g} s.\n"
        f"A GPU does one load or unload at a time. Sizes: {sizes}.\n"
        "A third of the models each runs 8 concurrent predictions of 3 s, 1 of 2 s, or 16 of 0.2 s\n"
        "(means, log-normal). Arrivals do not depend on the ends of predictions. Nothing fails.",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="workloads to replay (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--seconds", type=float, default=1800, help="seconds of arrivals (default: 1800)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE")
    parser.add_argument("--histogram", action="store_true", help="also print a histogram of the waits")
    growing = parser.add_argument_group(
        "time of decisions",
        "With --devices, only the appliance is simulated: how long its decisions take, from size to size.",
    )
    growing.add_argument("--devices", type=int, nargs="+", metavar="N", help="GPUs, such as 10 100 1000")
    growing.add_argument("--nodes", type=int, nargs="+", metavar="N", help="nodes (default: 8 GPUs on each)")
    growing.add_argument(
        "--models", type=int, nargs="+", metavar="N", help="models (default: 5 for each GPU)"
    )
    growing.add_argument(
        "--on-two-nodes",
        type=int,
        default=0,
        metavar="PERCENT",
        help="percentage of the models that are on two nodes (default: 0)",
    )
    growing.add_argument(
        "--predictions", type=int, default=20, metavar="N", help="predictions for each GPU (default: 20)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the simulation; return 1 unless the appliance has the best p99 wait in every workload."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}: there are {', '.join(WORKLOADS)}")
    if asked.seeds < 1 or asked.seconds <= 0:
        parser.error("--seeds must be at least 1, and --seconds over 0")
    if asked.devices:
        return _print_growth(parser, asked)
    names, seeds = asked.workloads or list(WORKLOADS), range(asked.seeds)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulating", total=len(names) * len(seeds) * len(policies()))
        rows = compare(names, seeds, asked.seconds, lambda: progress.advance(task))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_table(rows))
    if asked.histogram:
        console.print(_histogram(rows))
    behind = _behind(rows)
    for line in behind:
        console.print(line)
    if asked.json is not None:
        asked.json.write_text(json.dumps(_report(rows, asked.seeds, asked.seconds, behind), indent=2) + "\n")
    return 1 if behind else 0


def _print_growth(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> int:
    """Simulate the sizes that were asked for; print how long decisions take, and by how much longer."""
    counts = {"nodes": asked.nodes, "models": asked.models}
    for name, values in counts.items():
        if values is not None and len(values) not in {1, len(asked.devices)}:
            parser.error(f"--{name} must have one value, or one for each value of --devices")
    nodes = _for_each(asked.nodes, [max(1, devices // 8) for devices in asked.devices])
    models = _for_each(asked.models, [5 * devices for devices in asked.devices])
    sizes = list(map(ClusterSize, asked.devices, nodes, models, repeat(asked.on_two_nodes)))
    if not 0 <= asked.on_two_nodes <= 100 or (asked.on_two_nodes and min(nodes) < 2):
        parser.error("--on-two-nodes must be from 0 to 100, and 0 with a single node")
    if asked.predictions < 1 or any(min(size[:3]) < 1 or size.nodes > size.devices for size in sizes):
        parser.error("all numbers must be at least 1, and there must be a device for each node")
    found = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for size in sizes:
            task = progress.add_task(f"{size.devices} devices", total=None)
            found.append(measure(size, asked.predictions, 1, partial(progress.advance, task)))
            progress.remove_task(task)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(_growth_table(found))
    if asked.json is not None:
        rows = [{**each._asdict(), "size": each.size._asdict()} for each in found]
        asked.json.write_text(
            json.dumps({"predictions_for_each_device": asked.predictions, "rows": rows}, indent=2) + "\n"
        )
    return 0


def _for_each(asked: list[int] | None, default: list[int]) -> list[int]:
    if asked is None:
        return default
    return asked * len(default) if len(asked) == 1 else asked


def _growth_table(found: list[DecisionTimes]) -> Table:
    columns = (
        "devices",
        "nodes",
        "models",
        "events",
        "p50",
        "p99",
        "mean",
        "growth",
        "wait p50",
        "wait p99",
        "loads",
    )
    title = "milliseconds of a decision with its event; growth of the mean; waits in simulated seconds"
    table = Table(*columns, box=None, title=title)
    for column in table.columns:
        column.justify = "right"
    for each, grown in zip(found, growth(found), strict=True):
        milliseconds = (each.decide_p50, each.decide_p99, each.decide_mean)
        table.add_row(
            *map(str, each.size[:3]),
            f"{each.events:,}",
            *(f"{1000 * seconds:.3f}" for seconds in milliseconds),
            "" if grown is None else f"{grown:.1f} x",
            f"{each.wait_p50:.1f}",
            f"{each.wait_p99:.1f}",
            f"{each.loads:,}",
        )
    return table


def _table(rows: list[Row]) -> Table:
    columns = ("workload", "policy", "layout", "ready", "p50", "p99", "longest", "loads", "GiB moved")
    table = Table(*columns, box=None, title="waits in seconds; medians of the seeds")
    for column in table.columns[3:]:
        column.justify = "right"
    last = None
    for row in rows:
        if last not in {None, row.workload}:
            table.add_row()
        table.add_row(
            "" if row.workload == last else row.workload,
            row.policy,
            row.layout,
            f"{row.hit_rate:.0%}",
            f"{row.p50:.1f}",
            f"{row.p99:.1f}",
            f"{row.longest:.1f}",
            f"{row.loads:.0f}",
            f"{row.moved / GIB:,.0f}",
        )
        last = row.workload
    return table


def _histogram(rows: list[Row]) -> Table:
    table = Table(
        "workload", "policy", *(f"to {end:g} s" for end in BARS), box=None, title="share of predictions"
    )
    for row in rows:
        shares, below = [], 0
        for end in BARS:
            count = sum(wait <= end for wait in row.waits)
            shares.append((count - below) / max(1, len(row.waits)))
            below = count
        table.add_row(
            row.workload, row.policy, *(f"{'#' * round(10 * share)} {share:.0%}" for share in shares)
        )
    return table


def _behind(rows: list[Row]) -> list[str]:
    """Where another policy's p99 is not longer."""
    own = {row.workload: row.p99 for row in rows if row.policy == APPLIANCE}
    return [
        f"not ahead on {row.workload}: {row.policy} has a p99 of {row.p99:.1f} s, "
        f"the appliance {own[row.workload]:.1f} s"
        for row in rows
        if row.policy != APPLIANCE and row.p99 <= own[row.workload]
    ]


def _report(rows: list[Row], seeds: int, seconds: float, behind: list[str]) -> dict[str, Any]:
    return {
        "seeds": seeds,
        "seconds": seconds,
        "device_bytes": DEVICE,
        "load_seconds": {"startup": STARTUP, "bytes_a_second": BANDWIDTH},
        "rows": [row.as_json() for row in rows],
        "not_ahead": behind,
    }


if __name__ == "__main__":
    sys.exit(main())
