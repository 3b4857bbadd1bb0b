"""Program that downloads the weights of one model, so that the download can be stopped.

``python -m appliance.adding.download_process HOME MARK`` reads a ``DownloadTask`` as JSON from stdin, and
prints each change of the progress as ``MARK`` and a ``Line`` in JSON. Other lines are output of libraries.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.progress import Progress, TaskID

from appliance import weights
from appliance.adding.pending import Pending
from appliance.domain.errors import ApplianceError
from appliance.runners.adapters import with_downloads

_INTERVAL: Final = 0.2  # seconds between two lines about the same step


class DownloadTask(msgspec.Struct):
    """The input. ``secrets`` are environment variables.

    The process is not started with them, because other processes of this user can read the variables that a
    process was started with.
    """

    pending: Pending
    secrets: dict[str, str]


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the output. Bytes are those of the current step."""

    step: str = ""
    done: int = 0
    total: int | None = None
    ended: bool = False
    problem: str | None = None  # of a download that has ended


class _Lines(Progress):
    """A progress display that prints lines of JSON."""

    def __init__(self, model: str, mark: str) -> None:
        super().__init__(disable=True)
        self._mark = mark
        self._model = model
        self._line = Line()
        self._printed = 0.0

    def update(self, task_id: TaskID, **changes: Any) -> None:
        step = str(changes.get("description", self._line.step)).removeprefix(f"{self._model}: ")
        new_step = step != self._line.step
        done = 0 if new_step else int(changes.get("completed") or self._line.done)
        total = None if new_step else changes.get("total", self._line.total)
        self._line = Line(step, done, total)
        now = time.monotonic()
        if new_step or done == total or now - self._printed >= _INTERVAL:
            self._printed = now
            show(self._line, self._mark)


def show(line: Line, mark: str) -> None:
    """Print a line in one write: threads that download print at the same time."""
    sys.stdout.flush()  # what libraries have printed before
    os.write(sys.stdout.fileno(), mark.encode() + msgspec.json.encode(line) + b"\n")


def main(home: Path, pending: Pending, mark: str) -> Line:
    """Download the weights, and check that the model's options can be completed from them."""
    model = pending.config()
    try:
        for each in with_downloads([model]):
            weights.prepare(home, each, _Lines(each.name, mark))
        with weights.as_weights_errors(model.name):
            weights.complete_options(home, model)
    except ApplianceError as error:
        return Line(ended=True, problem=error.detail)
    return Line(ended=True)


if __name__ == "__main__":
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=DownloadTask)
    os.environ.update(task.secrets)
    show(main(Path(sys.argv[1]), task.pending, sys.argv[2]), sys.argv[2])
