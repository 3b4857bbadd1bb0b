"""Calls of runners in the process of the test, and the word error rate of a transcription."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from appliance.domain import input_schema
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.base import LoadSpec, Runner


def load_spec(kind: str, weights: Path | None, **options: Any) -> LoadSpec:
    """Return the load request of a model on one thread of the CPU; ``options`` must be complete."""
    return LoadSpec(
        model=f"test/{kind}",
        version="0" * 64,
        kind=kind,
        options=options,
        weights=None if weights is None else str(weights),
        device="cpu",
        memory=1,
        threads=1,
        concurrency=1,
        cache="",
    )


class Ran(NamedTuple):
    """The result of one prediction."""

    output: Any
    logs: str
    metrics: dict[str, Any]


def job(interface: Interface, folder: Path, **given: Any) -> Job:
    """Return a job whose input has all defaults; input files are given as paths."""
    files = {name: given.pop(name) for name in interface.file_inputs if name in given}
    asked = {**given, **dict.fromkeys(files, "data:,x")}
    complete = input_schema.validate(interface, asked)
    return Job("p", 1, complete | {name: str(path) for name, path in files.items()}, folder=str(folder))


async def run(runner: Runner, job: Job) -> Ran:
    """Run ``job`` to its end and return its result."""
    output: Any = None
    logs, metrics = "", {}
    async for event in runner.run(job):
        match event:
            case Output(values):
                (output,) = values
            case Log(text):
                logs += text
            case Metric(name, value):
                metrics[name] = value
    return Ran(output, logs, metrics)


def word_error_rate(said: str, heard: str) -> float:
    """Return the number of inserted, missing and wrong words, divided by the number of spoken words."""
    words, others = (re.findall(r"[a-z0-9']+", text.lower()) for text in (said, heard))
    row = list(range(len(others) + 1))
    for number, word in enumerate(words, 1):
        before, row[0] = row[0], number
        for at, other in enumerate(others, 1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (word != other))
    return row[-1] / len(words)
