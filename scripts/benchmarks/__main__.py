"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from scripts.benchmarks import cold_start, gpu, llm, memory, overhead, store, streams, ui

MODES: Final = {
    "cold-start": cold_start,
    "llm": llm,
    "overhead": overhead,
    "memory": memory,
    "store": store,
    "streams": streams,
    "ui": ui,
    "gpu": gpu,
}


def main() -> int:
    """Run the chosen benchmarks and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the appliance and other servers on this machine and prints ratios. Compare "
        "times only within one run: other machines, and other load on this machine, change them.",
        epilog="cold-start: time to the first output of loaded and unloaded models, compared with starting "
        "each without the appliance. "
        "llm: tokens/s and time to the first token of a loaded model, compared with vLLM's own server. "
        "overhead: sync predictions/s of a one-line model, compared with LitServe, BentoML and Cog. "
        "memory: memory of the idle appliance. "
        "store: the database with a thousand and a million predictions. "
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
    parser.add_argument("--rounds", type=int, help="rounds of cold-start (default: 3)")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json == Path("/dev/stdout"))
    report: dict[str, Any] = {
        "machine": {"processor": _processor(), "threads": _threads(), "python": sys.version.split()[0]},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for name in [arguments.mode] if arguments.mode else list(MODES):
        console.rule(name)
        if name == "cold-start" and arguments.rounds:
            report[name] = cold_start.measure(console, arguments.rounds)
        else:
            report[name] = MODES[name].measure(console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _threads() -> int:
    import os

    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main())
