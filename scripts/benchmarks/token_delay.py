"""Delay that the appliance adds to a token, from the engine's output to the client's socket.

The engine is the stand-in of ``step_engine``; everything behind it is the appliance's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from scripts.benchmarks import hooks, statistic, step_engine, stream_reader
from scripts.benchmarks.servers import START_TIMEOUT
from scripts.benchmarks.stream_reader import Delays, Plan
from tests.support.appliance_process import TOKEN, Appliance

ROUNDS: Final = 3
SECONDS: Final = 10.0
TARGET_P50: Final = 0.001  # seconds
TARGET_P99: Final = 0.010
_MODEL: Final = "bench/engine"


class Case(NamedTuple):
    """Streams, and the rhythm in which they get tokens."""

    streams: int
    rhythm: str  # TOGETHER or SPREAD
    interval: float  # seconds between two tokens of one stream

    def __str__(self) -> str:
        return f"{self.streams} streams, {self.streams / self.interval:,.0f} tokens/s, {self.rhythm}"


#: A stream with 4 tokens/s on a processor, and one with 20 tokens/s on a GPU, are ordinary speeds.
CASES: Final = (
    Case(1, step_engine.TOGETHER, 0.05),
    Case(16, step_engine.TOGETHER, 0.05),
    Case(256, step_engine.SPREAD, 0.25),
    Case(256, step_engine.TOGETHER, 0.25),
    Case(256, step_engine.SPREAD, 0.1),
    Case(256, step_engine.TOGETHER, 0.1),
)


def measure(console: Console, rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure each case in each round; the medians of the rounds count."""
    found: dict[str, list[Delays]] = {}
    with _running() as running:
        for number in range(rounds):
            for case in CASES:
                console.print(f"round {number + 1} of {rounds}: {case}", style="dim")
                found.setdefault(str(case), []).append(_delays(running, case, seconds))
                _cancel_all(running)
    return report(found, console)


@contextmanager
def _running() -> Iterator[Appliance]:
    most = max(case.streams for case in CASES)
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
        home = Path(folder)
        (home / "models.yaml").write_text(
            f"models:\n  - {{name: {_MODEL}, kind: echo, options: {{stream: true, concurrency: {most}}}}}\n"
        )
        running = Appliance(home, home / "models.yaml", variables=hooks.variables(**{hooks.ENGINE: "1"}))
        running.start(START_TIMEOUT)
        try:
            yield running
        finally:
            running.stop()


def _delays(running: Appliance, case: Case, seconds: float) -> Delays:
    # Enough tokens for the time in which the streams are opened.
    tokens = int((seconds + 30) / case.interval)
    input = {"text": case.rhythm, "chunk_delay": case.interval, "repeat": tokens}
    signed_in = {"Authorization": f"Bearer {TOKEN}"}
    measured = stream_reader.measure(Plan(running.url, signed_in, _MODEL, input, case.streams, seconds))
    if measured.ended:
        raise RuntimeError(f"{measured.ended} of {case.streams} streams ended during the measurement")
    return measured


def _cancel_all(running: Appliance) -> None:
    """Cancel all running predictions; the reader closed their streams early."""
    with running.client() as client:
        while open_ones := [
            record["id"]
            for record in client.get("/v1/predictions").json()["results"]
            if record.get("completed_at") is None
        ]:
            for id in open_ones:
                client.post(f"/v1/predictions/{id}/cancel").raise_for_status()


def report(found: dict[str, list[Delays]], console: Console) -> dict[str, Any]:
    """Print the quantiles of the delays by case, and return them in seconds, round by round."""
    table = Table("case", "tokens/s read", "p50", "p99", "slowest", title="added delay of a token, ms")
    cases: dict[str, dict[str, list[float]]] = {}
    for name, rounds in found.items():
        by_round = [[delay / 1e9 for delay in one.nanoseconds] for one in rounds]
        values = cases[name] = {
            "tokens_per_second": [len(one.nanoseconds) / one.seconds for one in rounds],
            "p50": [statistic.quantile(delays, 0.5) for delays in by_round],
            "p99": [statistic.quantile(delays, 0.99) for delays in by_round],
            "slowest": [max(delays) for delays in by_round],
        }
        rate = statistic.Spread.of(values["tokens_per_second"]).median
        shown = (
            str(statistic.Spread.of([value * 1000 for value in values[key]]))
            for key in ("p50", "p99", "slowest")
        )
        table.add_row(name, f"{rate:,.0f}", *shown)
    console.print(table)
    console.print(
        f"Medians of {len(next(iter(found.values())))} rounds, and the lowest and highest. Targets at 256 "
        f"streams: p50 at most {TARGET_P50 * 1000:g} ms, p99 at most {TARGET_P99 * 1000:g} ms."
    )
    return {"seconds": cases, "targets": {"p50": TARGET_P50, "p99": TARGET_P99}}
