"""The command line of scripts/campaign."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from scripts.faults.cases import CASES, SHORT, Case, Settings
from scripts.faults.ledger import Tally
from scripts.faults.resources import Skipped
from scripts.faults.testbed import Testbed

_COLUMNS: Final = ("accepted", "ended", "wrong", "lost")


class Result(NamedTuple):
    """The result of one case."""

    case: str
    tally: Tally
    seconds: float | None  # seconds to recover; None: it did not recover
    skipped: str | None  # why it was not run

    @property
    def good(self) -> bool:
        """Whether nothing was wrong or lost, and the appliance recovered or gave a reason not to start."""
        return not self.tally.wrong and not self.tally.lost and (self.seconds is not None or self.refused)

    @property
    def refused(self) -> bool:
        """Whether the case was skipped, or the appliance gave a reason not to start and accepted nothing."""
        return self.skipped is not None or (not self.tally.accepted and bool(self.tally.notes))

    def report(self) -> dict[str, Any]:
        """The result as a JSON object."""
        counts = {name: getattr(self.tally, name) for name in (*_COLUMNS, "repeated")}
        return {
            "case": self.case,
            **counts,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "notes": self.tally.notes,
        }


class Campaign:
    """Runs cases in order. Cases that can share an appliance do so until one of them fails."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """``folder`` is where the data folders are created."""
        self._settings = settings
        self._folder = folder
        self._testbed: Testbed | None = None
        self._ui = False
        self._number = 0

    def run(self, case: Case) -> Result:
        """Run one case: inject its fault, and count."""
        tally = Tally()
        try:
            if case.own is not None:
                self.close()
                return Result(case.name, tally, case.own(self._fresh(), self._settings.patience, tally), None)
            assert case.shared is not None
            testbed = self._shared(case.ui)
            result = Result(case.name, tally, case.shared(testbed, self._settings, tally), None)
        except Skipped as reason:
            return Result(case.name, tally, None, str(reason))
        except (AssertionError, httpx.HTTPError, psutil.Error) as error:  # a wait timed out or a call failed
            tally.lost += 1
            tally.note(" ".join(str(error).strip().splitlines()[-1:]) or type(error).__name__)
            result = Result(case.name, tally, None, None)
        if not result.good:
            self.close()
        return result

    def close(self) -> None:
        """End the shared appliance."""
        if self._testbed is not None:
            self._testbed.close()
            self._testbed = None

    def _shared(self, ui: bool) -> Testbed:
        if self._testbed is not None and self._ui != ui:
            self.close()
        if self._testbed is None:
            self._ui = ui
            self._testbed = Testbed(self._fresh() / "home", patience=self._settings.patience, ui=ui)
            self._testbed.start()
        return self._testbed

    def _fresh(self) -> Path:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        return folder


def main() -> int:
    """Run the cases of the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/campaign",
        description="Starts real appliances with small models, kills and stops each of their processes "
        "in each state, breaks disk, clock, weights, database and file descriptors, and counts the "
        "predictions and files that were accepted, ended, wrong and lost. Exit status 1 if anything was "
        "wrong or lost, or an appliance did not recover.",
        epilog="wrong: a prediction has an unexpected output, its webhook or usage contradicts its record, "
        "or the content of a file changed. lost: an accepted prediction did not end, or failed without a "
        "reason, or its last webhook never arrived, or an accepted file is gone. Seconds to recover are "
        "counted from the end of the fault until a new prediction succeeds; a driver that has ended is "
        "started again. docs/fault-injection.md has the results so far.",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--cases", metavar="PATTERN", action="append", help='such as "gateway/*" or "*/stop/*"'
    )
    parser.add_argument("--short", action="store_true", help="six cases with smaller amounts: under a minute")
    parser.add_argument("--patience", type=float, default=90.0, help="longest wait in seconds (default: 90)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to FILE")
    arguments = parser.parse_args()
    chosen = _chosen(arguments.cases, short=arguments.short)
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        parser.error(f"no case matches {' or '.join(arguments.cases)}; --list prints the names")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a normal exit stops the appliances
    console = Console()
    settings = Settings(arguments.short, arguments.patience, stopped=2.0 if arguments.short else 20.0)
    results: list[Result] = []
    with _campaign(settings) as campaign:
        for number, case in enumerate(chosen, 1):
            result = campaign.run(case)
            results.append(result)
            console.print(f"{number}/{len(chosen)} {_line(result)}", highlight=False, soft_wrap=True)
    console.print(_table(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_report(results), indent=2) + "\n")
    return 0 if all(result.good for result in results) else 1


@contextmanager
def _campaign(settings: Settings) -> Iterator[Campaign]:
    with tempfile.TemporaryDirectory(prefix="appliance-campaign-", ignore_cleanup_errors=True) as folder:
        campaign = Campaign(settings, Path(folder))
        try:
            yield campaign
        finally:
            campaign.close()


def _chosen(patterns: Sequence[str] | None, *, short: bool) -> list[Case]:
    """The matching cases in the order of the list; cases that need the UI come last and share one."""
    cases = [case for case in CASES if not short or case.name in SHORT]
    if patterns:
        cases = [case for case in cases if any(fnmatch.fnmatch(case.name, each) for each in patterns)]
    return sorted(cases, key=lambda case: (case.own is not None, case.ui))


def _line(result: Result) -> str:
    if result.skipped is not None:
        return f"{result.case}: skipped: {result.skipped}"
    tally = result.tally
    counts = ", ".join(f"{getattr(tally, name)} {name}" for name in _COLUMNS)
    after = "did not recover" if result.seconds is None else f"recovered in {result.seconds:.1f} s"
    notes = f" ({'; '.join(tally.notes)})" if tally.notes else ""
    return f"{result.case}: {counts}, {after}{notes}"


def _table(results: Sequence[Result]) -> Table:
    table = Table("case", *_COLUMNS, "seconds to recover")
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        counts = [str(getattr(result.tally, name)) for name in _COLUMNS]
        after = "skipped" if result.skipped else "-" if result.seconds is None else f"{result.seconds:.1f}"
        table.add_row(result.case, *counts, after, style=None if result.good else "red")
    totals = [str(sum(getattr(result.tally, name) for result in results)) for name in _COLUMNS]
    table.add_row("all", *totals, "", style="bold")
    return table


def _report(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "machine": {
            "system": platform.platform(),
            "threads": len(os.sched_getaffinity(0)),
            "memory": psutil.virtual_memory().total,
        },
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cases": [result.report() for result in results],
    }


if __name__ == "__main__":
    sys.exit(main())
