"""Predictions as lines of CSV and JSON, for downloads of any length."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from typing import Any, Final

from msgspec import UNSET

from appliance.gateway.api.admin.usage import cell
from appliance.protocols import serializers
from appliance.protocols.admin_types import AdminPredictionResponse
from appliance.protocols.preview import preview

#: Characters of inputs and outputs in a CSV; JSON lines have them whole.
_LONGEST: Final = 1000
_COLUMNS: Final = (
    *("id", "type", "status", "model", "version", "owner", "token", "token_name", "created_at", "started_at"),
    *("completed_at", "hardware", "attempts", "predict_time", "cold_start", "input_tokens", "output_tokens"),
    *("error", "input", "output"),
)
_METRICS: Final = {
    "predict_time": "predict_time",
    "cold_start": "cold_start",
    "input_tokens": "input_token_count",
    "output_tokens": "output_token_count",
}


async def json_lines(items: AsyncIterator[AdminPredictionResponse]) -> AsyncIterator[bytes]:
    async for item in items:
        yield serializers.encode(item) + b"\n"


async def csv_lines(items: AsyncIterator[AdminPredictionResponse]) -> AsyncIterator[bytes]:
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\r\n")
    lines.writerow(_COLUMNS)
    async for item in items:
        lines.writerow([cell(_value(item, column)) for column in _COLUMNS])
        yield written.getvalue().encode(errors="replace")
        written.seek(0)
        written.truncate()
    yield written.getvalue().encode(errors="replace")  # the header, if there is no prediction


def _value(item: AdminPredictionResponse, column: str) -> Any:
    if column in _METRICS:
        found = item.metrics.get(_METRICS[column]) if isinstance(item.metrics, dict) else None
    else:
        found = getattr(item, column)
    if column in {"input", "output"}:
        return "" if found is UNSET else preview(found, _LONGEST)
    return "" if found is None or found is UNSET else found
