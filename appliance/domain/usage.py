"""Sum up the usage of predictions, and compute its cost.

All usage of a prediction is counted on the day (UTC) on which it ended. Times are whole microseconds because
integers add up exactly: the metrics of predictions have six decimals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from appliance.domain.prediction import Prediction, Status

#: Fields of `Usage` by which rows can be grouped, in the order in which groups are sorted.
KEYS: Final = ("day", "model", "work", "owner", "token", "hardware")
#: Fields of `Usage` that are summed up.
AMOUNTS: Final = (
    "succeeded",
    "failed",
    "canceled",
    "aborted",
    "predict_us",
    "cold_starts",
    "cold_start_us",
    "input_tokens",
    "output_tokens",
)
_LARGEST: Final = 10**9  # limit of one metric: models can report any number, and sums must fit in 64 bits
_MULTIPLE: Final = re.compile(r"(.+)-(\d+)x")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of a group of predictions; keys by which predictions were not grouped are None."""

    day: str | None = None  # YYYY-MM-DD
    model: str | None = None
    work: str | None = None  # prediction or training
    owner: str | None = None
    token: str | None = None  # id; "" for predictions made before tokens were recorded
    hardware: str | None = None  # SKU; "" for predictions that never ran or ran before it was recorded
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    aborted: int = 0
    predict_us: int = 0  # microseconds
    cold_starts: int = 0  # predictions that waited for their model to be loaded
    cold_start_us: int = 0  # microseconds that these predictions waited
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def predictions(self) -> int:
        return self.succeeded + self.failed + self.canceled + self.aborted

    def __add__(self, other: Usage) -> Usage:
        """Return the sums of both, with the keys of the first."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in AMOUNTS}
        return msgspec.structs.replace(self, **sums)


class Priced(NamedTuple):
    """Usage and its cost."""

    usage: Usage
    cost: Decimal | None  # None if no part of the usage has a price
    unpriced_us: int  # microseconds on hardware without a price, not included in the cost


def of(record: Prediction) -> Usage:
    ended = record.completed_at if record.completed_at is not None else record.created_at
    cold_start = microseconds(record.metrics.get("cold_start"))
    counts = {status.value: int(record.status is status) for status in Status if status.terminal}
    return Usage(
        day=day(ended),
        model=record.model,
        work="prediction" if record.destination is None else "training",
        owner=record.owner,
        token=record.token or "",
        hardware=record.hardware or "",
        predict_us=microseconds(record.metrics.get("predict_time")),
        cold_starts=int(cold_start > 0),
        cold_start_us=cold_start,
        input_tokens=count(record.metrics.get("input_token_count")),
        output_tokens=count(record.metrics.get("output_token_count")),
        **counts,
    )


def day(moment: float) -> str:
    """Return the day (UTC) of a time in Unix seconds, as YYYY-MM-DD."""
    return datetime.fromtimestamp(math.floor(moment), UTC).date().isoformat()


def microseconds(value: Any) -> int:
    """Convert a metric from seconds to microseconds; return 0 if ``value`` is not a valid number."""
    return round(value * 1_000_000) if _valid(value) else 0


def count(value: Any) -> int:
    """Convert a metric to an integer; return 0 if ``value`` is not a valid number."""
    return int(value) if _valid(value) else 0


def _valid(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LARGEST


def seconds(microseconds: int) -> float:
    return microseconds / 1_000_000


def price(hardware: str, prices: Mapping[str, float]) -> Decimal | None:
    """Return the price of one second on this hardware; None if no price is configured.

    Without a configured price, ``<sku>-<n>x`` costs n times ``<sku>``, and ``<a>+<b>`` costs ``<a>`` plus
    ``<b>``.
    """
    if hardware in prices:
        return Decimal(repr(prices[hardware]))
    if "+" in hardware:
        each = [price(sku, prices) for sku in hardware.split("+")]
        known = [one for one in each if one is not None]
        return sum(known, Decimal()) if len(known) == len(each) else None
    multiple = _MULTIPLE.fullmatch(hardware)
    if multiple is None or multiple[1] not in prices:
        return None
    return int(multiple[2]) * Decimal(repr(prices[multiple[1]]))


def table(rows: Iterable[Usage], by: Collection[str], prices: Mapping[str, float]) -> list[Priced]:
    """Sum up ``rows`` by the keys in ``by``, and sort the groups. ``hardware`` must be set in each row."""
    groups: dict[tuple[str, ...], list[Usage]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, key) or "" for key in KEYS if key in by), []).append(row)
    return [_priced(groups[key], by, prices) for key in sorted(groups)]


def total(rows: Iterable[Usage], prices: Mapping[str, float]) -> Priced:
    return _priced([*rows], (), prices)


def _priced(rows: list[Usage], by: Collection[str], prices: Mapping[str, float]) -> Priced:
    first = rows[0] if rows else Usage()
    combined = Usage(**{key: getattr(first, key) for key in KEYS if key in by})
    cost: Decimal | None = None
    unpriced = 0
    for row in rows:
        combined += row
        per_second = price(row.hardware or "", prices)
        if per_second is not None:
            cost = (cost or Decimal()) + per_second * row.predict_us / 1_000_000
        else:
            unpriced += row.predict_us
    if cost is None and unpriced == 0 and prices:  # no model ran
        cost = Decimal()
    return Priced(combined, cost, unpriced)
