"""Logs predictions that took long, with the duration of each phase."""

from __future__ import annotations

import logging

from appliance.domain import usage
from appliance.domain.prediction import Prediction

_log = logging.getLogger(__name__)


class SlowPredictions:
    """Logs each prediction that ends more than ``after`` seconds after its creation; None: logs nothing."""

    def __init__(self, after: float | None) -> None:
        self._after = after

    def observe(self, record: Prediction) -> None:
        """Log a prediction when it ends; ignore other changes of ``record``."""
        if self._after is None or not record.status.terminal or record.completed_at is None:
            return
        took = record.completed_at - record.created_at
        if took <= self._after:
            return
        started = record.completed_at if record.started_at is None else record.started_at
        load = _seconds(record, "cold_start")
        run = _seconds(record, "predict_time")
        _log.warning(
            "prediction %s of model %s took %.1f s: "
            "queued %.1f s, load %.1f s, run %.1f s, other %.1f s (%s)",
            record,  # gives the log record its fields
            record.model,
            took,
            max(0.0, started - record.created_at - load),
            load,
            run,
            max(0.0, record.completed_at - started - run),
            record.status.value,
        )


def _seconds(record: Prediction, metric: str) -> float:
    return usage.seconds(usage.microseconds(record.metrics.get(metric, 0.0)))
