"""Where the time of one sync prediction goes: the spans between points of the code that it passes."""

from __future__ import annotations

import bisect
import json
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from scripts.benchmarks import hooks, load, servers, statistic
from scripts.benchmarks.load import Plan
from scripts.benchmarks.span_recorder import POINTS, read
from tests.support.appliance_process import TOKEN, Appliance

SECONDS: Final = 4.0
SENT: Final = "sent by the client"
RECEIVED: Final = "read by the client"


class Row(NamedTuple):
    """A point, with medians over all predictions in seconds."""

    point: str
    at: float  # after the client sent the request
    span: float  # after the point before


def measure(console: Console, seconds: float = SECONDS) -> dict[str, Any]:
    """Run predictions one after the other, and report when they passed each point."""
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
        home, times = Path(folder) / "home", Path(folder) / "times"
        home.mkdir()
        times.mkdir()
        variables = hooks.variables(**{hooks.SPANS: str(times)})
        running = Appliance(home, servers.echo_config(home), variables=variables)
        running.start(servers.START_TIMEOUT)
        try:
            signed_in = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait"}
            url = f"{running.url}/v1/models/appliance/echo/predictions"
            body = json.dumps({"input": {"text": "hello"}})
            sent = load.measure(Plan(url, body, signed_in, clients=1, seconds=seconds, moments=True)).moments
        finally:
            running.stop()
        found = rows(sent, read(times))
    return _report(found, len(sent), console)


def rows(predictions: list[tuple[int, int]], records: list[tuple[int, int]]) -> list[Row]:
    """Return the points in the order in which predictions pass them.

    ``predictions`` are the times at which the client sent a request and read the response, one after the
    other. ``records`` are times with indexes of ``POINTS``, in the order of time.

    Raises:
        RuntimeError: a point was not recorded for most predictions.
    """
    moments = [moment for moment, _ in records]
    after: list[list[float]] = [[] for _ in POINTS]
    for begin, end in predictions:
        passed: dict[int, int] = {}
        for moment, index in records[bisect.bisect_left(moments, begin) : bisect.bisect_right(moments, end)]:
            if index not in passed or POINTS[index].counts == "last":
                passed[index] = moment
        for index, moment in passed.items():
            after[index].append((moment - begin) / 1e9)
    medians = [(RECEIVED, statistic.quantile([(end - begin) / 1e9 for begin, end in predictions], 0.5))]
    for point, times in zip(POINTS, after, strict=True):
        if len(times) < len(predictions) / 2:
            place = f"{point.module}.{point.function}"
            raise RuntimeError(
                f'the point "{point.name}" ({place}) was recorded for {len(times)} of {len(predictions)} '
                "predictions: correct POINTS in scripts/benchmarks/span_recorder.py"
            )
        medians.append((point.name, statistic.quantile(times, 0.5)))
    found = [Row(SENT, 0.0, 0.0)]
    for name, at in sorted(medians, key=lambda pair: pair[1]):
        found.append(Row(name, at, at - found[-1].at))
    return found


def _report(found: list[Row], predictions: int, console: Console) -> dict[str, Any]:
    table = Table(
        "point", "at, ms", "span, ms", "share", title=f"one sync prediction: median of {predictions:,}"
    )
    total = found[-1].at
    for row in found:
        table.add_row(
            row.point, f"{row.at * 1000:.3f}", f"{row.span * 1000:.3f}", f"{row.span / total * 100:.0f} %"
        )
    console.print(table)
    return {"predictions": predictions, "spans": [row._asdict() for row in found]}
