"""Jobs for worker processes, and the output files in their events."""

from __future__ import annotations

from typing import Any

from appliance.domain.prediction import Job, Output
from appliance.gateway.engine.active import ActivePrediction
from appliance.gateway.engine.dependencies import Dependencies
from appliance.store import Progress


def job_of(dependencies: Dependencies, active: ActivePrediction, attempt: int, input: dict[str, Any]) -> Job:
    """Return the job of one attempt; ``input`` has a local path in place of each file URL."""
    id, files = active.id, dependencies.files
    token = dependencies.run_tokens.make(id, attempt) if active.entry.calls_others else None
    return Job(
        *(id, attempt, input),
        folder=files.outputs(id, attempt),
        adapter=active.entry.adapter,
        inline=files.inline,
        token=token,
        operation=active.prediction.operation,
    )


def with_stored_files(dependencies: Dependencies, active: ActivePrediction, event: Progress) -> Progress:
    """Record the output files of an event; return the event to store.

    Raises:
        PredictionFailed: a file is missing or incomplete.
    """
    if not (isinstance(event, Output) and active.entry.files_out):
        return event
    return Output(dependencies.files.register(active.prediction, event.values), append=event.append)
