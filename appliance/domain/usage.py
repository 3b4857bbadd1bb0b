"""Usage of predictions, added up, and its cost.

A prediction counts once, whole, on the day (UTC) on which it ended. Times are whole microseconds, so that
sums are exact: they equal the sums of the predictions' own metrics, which have six decimals.
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

#: What usage can be told apart by, in the order in which it is sorted.
KEYS: Final = ("day", "model", "work", "owner", "token", "hardware")
#: What is added up.
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
_MOST: Final = 10**15  # a model's own code may report anything; sums must fit into 64 bits
_SEVERAL: Final = re.compile(r"(.+)-(\d+)x")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What all predictions took that have these things in common; None is what was not told apart."""

    day: str | None = None  # YYYY-MM-DD
    model: str | None = None
    work: str | None = None  # prediction or training
    owner: str | None = None
    token: str | None = None  # id; "" of predictions from before it was kept
    hardware: str | None = None  # SKU; "" of predictions that never ran, or from before it was kept
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    aborted: int = 0
    predict_us: int = 0  # microseconds
    cold_starts: int = 0  # predictions that waited for their model to be loaded
    cold_start_us: int = 0  # microseconds that they waited for that
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def predictions(self) -> int:
        """How many there were, however they ended."""
        return self.succeeded + self.failed + self.canceled + self.aborted

    def __add__(self, other: Usage) -> Usage:
        """Both together, with the keys of the first."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in AMOUNTS}
        return msgspec.structs.replace(self, **sums)


class Priced(NamedTuple):
    """Usage and what it costs."""

    usage: Usage
    cost: Decimal | None  # None where no price is known for any of its time
    unpriced_us: int  # microseconds without a price, which are not in the cost


def of(record: Prediction) -> Usage:
    """Return the usage of a prediction that has ended."""
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
        input_tokens=whole(record.metrics.get("input_token_count")),
        output_tokens=whole(record.metrics.get("output_token_count")),
        **counts,
    )


def day(moment: float) -> str:
    """The day in UTC of a time in Unix seconds."""
    return datetime.fromtimestamp(math.floor(moment), UTC).date().isoformat()


def microseconds(value: Any) -> int:
    """A metric in seconds; 0 if it is none."""
    return round(value * 1_000_000) if _amount(value) else 0


def whole(value: Any) -> int:
    """A metric that counts something; 0 if it is none."""
    return int(value) if _amount(value) else 0


def _amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST / 1_000_000


def seconds(microseconds: int) -> float:
    """As a number of seconds with six decimals."""
    return microseconds / 1_000_000


def price(hardware: str, prices: Mapping[str, float]) -> Decimal | None:
    """Return the price of a second on this hardware; None if it has none.

    Of ``<sku>-<n>x`` that is n times one, unless it has a price of its own; of ``<sku>+<sku>`` it is both.
    """
    if hardware in prices:
        return Decimal(repr(prices[hardware]))
    if "+" in hardware:
        each = [price(part, prices) for part in hardware.split("+")]
        known = [one for one in each if one is not None]
        return sum(known, Decimal()) if len(known) == len(each) else None
    several = _SEVERAL.fullmatch(hardware)
    if several is None or several[1] not in prices:
        return None
    return int(several[2]) * Decimal(repr(prices[several[1]]))


def table(rows: Iterable[Usage], by: Collection[str], prices: Mapping[str, float]) -> list[Priced]:
    """``rows``, which tell hardware apart, added up by some of ``KEYS``; in the order of those."""
    groups: dict[tuple[str, ...], list[Usage]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, key) or "" for key in KEYS if key in by), []).append(row)
    return [_priced(groups[key], by, prices) for key in sorted(groups)]


def total(rows: Iterable[Usage], prices: Mapping[str, float]) -> Priced:
    """All of ``rows``, which tell hardware apart, together."""
    return _priced([*rows], (), prices)


def _priced(rows: list[Usage], by: Collection[str], prices: Mapping[str, float]) -> Priced:
    first = rows[0] if rows else Usage()
    together = Usage(**{key: getattr(first, key) for key in KEYS if key in by})
    cost: Decimal | None = None
    unpriced = 0
    for row in rows:
        together += row
        per_second = price(row.hardware or "", prices)
        if per_second is not None:
            cost = (cost or Decimal()) + per_second * row.predict_us / 1_000_000
        else:
            unpriced += row.predict_us
    if cost is None and unpriced == 0 and prices:  # nothing ran, which costs nothing
        cost = Decimal()
    return Priced(together, cost, unpriced)
