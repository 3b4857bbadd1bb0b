"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from scripts.benchmarks import (
    cold_start,
    environment,
    gpu,
    llm,
    memory,
    overhead,
    postgresql,
    spans,
    store,
    streams,
    token_delay,
    ui,
)

MODES: Final = {
    "cold-start": cold_start,
    "llm": llm,
    "token-delay": token_delay,
    "overhead": overhead,
    "spans": spans,
    "memory": memory,
    "store": store,
    "postgresql": postgresql,
    "streams": streams,
    "ui": ui,
    "gpu": gpu,
}
#: Modes that compare rounds; the option --rounds sets their number.
REPEATED: Final = ("cold-start", "llm", "token-delay", "overhead", "postgresql")


def main() -> int:
    """Run the chosen benchmarks and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the appliance and other servers on this machine and prints ratios. Compare "
        "times only within one run: other machines, and other load on this machine, change them.",
        epilog="cold-start: time to the first output of loaded and unloaded models, compared with starting "
        "each without the appliance. "
        "llm: tokens/s and time to the first token of a loaded model, compared with vLLM's own server; on "
        "the quiet machine, and beside a process that computes. "
        "token-delay: delay of tokens from the engine to the clients, with up to 256 open streams. "
        "overhead: sync predictions/s of a one-line model, compared with LitServe, BentoML and Cog. "
        "spans: where the time of one sync prediction goes. "
        "memory: memory of the idle appliance. "
        "store: the database with a thousand and a million predictions. "
        "postgresql: a database on a PostgreSQL server of this machine, compared with SQLite. "
        "streams: memory and errors of a thousand open streams and five thousand queued predictions. "
        "ui: first paint of the pages, time from a click to the first token, and cost of open sessions. "
        "gpu: two language models on one GPU, together and in turns, with the times of sleeping and waking; "
        "never run so far. Without a mode: all of them.",
    )
    parser.add_argument("mode", nargs="?", choices=list(MODES), help="what to measure (default: everything)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        nargs="?",
        const=Path("/dev/stdout"),
        help="also write numbers and ratios to FILE (default: standard output)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help="rounds of " + ", ".join(f"{name} (default: {MODES[name].ROUNDS})" for name in REPEATED),
    )
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json == Path("/dev/stdout"))
    report: dict[str, Any] = {
        "machine": environment.machine(),
        "versions": environment.versions(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for name in [arguments.mode] if arguments.mode else list(MODES):
        console.rule(name)
        given = [arguments.rounds] if arguments.rounds and name in REPEATED else []
        report[name] = MODES[name].measure(console, *given)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
