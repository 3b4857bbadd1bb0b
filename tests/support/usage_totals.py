"""Totals of predictions by key: summed from the predictions, and as the usage report gives them."""

from __future__ import annotations

from collections import Counter, defaultdict
from decimal import Decimal
from typing import Any

import httpx

EVER = {"from": "2000-01-01", "to": "9999-12-31"}
ENDS = ("succeeded", "failed", "canceled", "aborted")


def microseconds(seconds: float) -> int:
    """Convert a JSON number with at most six decimals to microseconds, exactly."""
    value = Decimal(repr(seconds)) * 1_000_000
    assert value == int(value), seconds
    return int(value)


def all_predictions(client: httpx.Client, **narrowed: str) -> list[dict[str, Any]]:
    """Return the predictions of all accounts, from all pages of the list."""
    found = []
    reply = client.get("/admin/predictions", params=narrowed).json()
    while True:
        found += reply["results"]
        if reply["next"] is None:
            return found
        reply = client.get(reply["next"]).json()


def summed(records: list[dict[str, Any]], *keys: str) -> dict[tuple[str, ...], Counter[str]]:
    """Sum the metrics of ``records`` by ``keys``, under the names that the usage report has for them."""
    sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for record in records:
        known = {**record, "work": record["type"]}
        metrics = record.get("metrics", {})
        sums[tuple(known[key] or "" for key in keys)] += Counter(
            {
                "predictions": 1,
                record["status"]: 1,
                "predict_time": microseconds(metrics.get("predict_time", 0)),
                "cold_start": microseconds(metrics.get("cold_start", 0)),
                "cold_starts": int("cold_start" in metrics),
                "input_tokens": metrics.get("input_token_count", 0),
                "output_tokens": metrics.get("output_token_count", 0),
            }
        )
    return sums


def used(client: httpx.Client, *keys: str) -> dict[tuple[str, ...], Counter[str]]:
    """Return the same totals as ``summed``, from the usage report."""
    rows = client.get("/admin/usage", params={**EVER, "by": ",".join(keys)}).json()["rows"]
    sums = {}
    for row in rows:
        amounts = {
            name: row[name] for name in ("predictions", "cold_starts", "input_tokens", "output_tokens", *ENDS)
        }
        times = {name: microseconds(row[name]) for name in ("predict_time", "cold_start")}
        sums[tuple(row[key] for key in keys)] = +Counter({**amounts, **times})
    return sums


def is_quiet(client: httpx.Client) -> bool:
    """Return whether no prediction of any account waits or runs."""
    return not any(all_predictions(client, status=status) for status in ("starting", "processing"))
