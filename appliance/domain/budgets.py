"""Budgets: limits on the predictions, seconds, tokens and cost of accounts, groups, tokens and models. Pure.

Amounts are those of the usage table: a prediction counts in the day and month (UTC) in which it ended. An
unfinished prediction counts as one prediction of the current day and month, without seconds, tokens and cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Final, Literal, NamedTuple

import msgspec

from appliance.domain import usage
from appliance.domain.access import Policy
from appliance.domain.budget_rules import (
    EACH,
    PERIOD_AMOUNTS,
    AmountName,
    Budget,
    Numbered,
    Subject,
    is_pattern,
    of_prediction,
    replacements,
)
from appliance.domain.errors import BudgetSpent, Throttled
from appliance.domain.prediction import Prediction
from appliance.domain.usage import Usage

_DAY: Final = 86400
_RETRY: Final = 1  # seconds after which a request that exceeded `concurrent` may be repeated
_MAX_CACHED: Final = 10_000  # combinations of account, token and model; a new count of all may exceed it
_KEPT: Final = 3  # days and months whose usage is kept, because the clock may be set back


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one limit is used."""

    name: AmountName
    used: float
    limit: float
    state: Literal["ok", "warning", "spent"]


class BudgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """The amounts of one budget for one subject. The reset time is in Unix seconds."""

    subject: Subject
    period: Literal["day", "month"]
    resets_at: float
    amounts: list[Amount]


class _Sums:
    """Usage of ended predictions with the same period, account, token, model and hardware."""

    __slots__ = ("predict_us", "predictions", "tokens")

    def __init__(self) -> None:
        self.predictions = self.predict_us = self.tokens = 0

    def add(self, predictions: int, predict_us: int, tokens: int) -> None:
        self.predictions += predictions
        self.predict_us += predict_us
        self.tokens += tokens


class _Ended(NamedTuple):
    owner: str
    token: str
    model: str
    hardware: str


#: Usage of ended predictions, by the first day of the period, in days since 1970.
_Periods = dict[int, dict[_Ended, _Sums]]


class _Unfinished(NamedTuple):
    owner: str
    token: str
    model: str
    child: bool
    counters: tuple[_Counter, ...]  # that count the prediction


class _Counter:
    """The counts of one budget for one subject."""

    def __init__(self, budget: Budget, subject: Subject) -> None:
        self.budget = budget
        self.subject = subject
        self.unfinished: set[str] = set()
        self.concurrent: set[str] = set()  # without children, for which their parents wait
        self._ended = self._predict_us = self._tokens = 0
        self._cost = Decimal()
        names: tuple[AmountName, ...] = (*PERIOD_AMOUNTS, "concurrent")
        self._limits = [
            (name, Decimal(repr(limit))) for name in names if (limit := getattr(budget, name)) is not None
        ]
        self._warn_at = Decimal(repr(budget.warn_at))

    def add(self, id: str, *, child: bool) -> None:
        self.unfinished.add(id)
        if not child:
            self.concurrent.add(id)

    def discard(self, id: str) -> None:
        self.unfinished.discard(id)
        self.concurrent.discard(id)

    def count(self, predictions: int, predict_us: int, tokens: int, price: Decimal | None) -> None:
        self._ended += predictions
        self._predict_us += predict_us
        self._tokens += tokens
        if price is not None:
            self._cost += price * predict_us / 1_000_000

    def used(self, amount: AmountName) -> int | Decimal:
        match amount:
            case "concurrent":
                return len(self.concurrent)
            case "predictions":
                return self._ended + len(self.unfinished)
            case "seconds":
                return Decimal(self._predict_us) / 1_000_000
            case "tokens":
                return self._tokens
            case "cost":
                return self._cost

    def spent(self) -> Iterator[AmountName]:
        """Yield the amounts whose limits are used up."""
        return (name for name, limit in self._limits if self.used(name) >= limit)

    def amounts(self) -> list[Amount]:
        return [self.amount(name) for name, _ in self._limits]

    def amount(self, name: AmountName) -> Amount:
        limit, used = dict(self._limits)[name], self.used(name)
        spent, near = used >= limit, used >= limit * self._warn_at
        state: Literal["ok", "warning", "spent"] = "spent" if spent else "warning" if near else "ok"
        return Amount(name=name, used=float(used), limit=float(limit), state=state)

    def nearly_spent(self) -> list[Amount]:
        """Return the amounts of a period of which the share ``warn_at`` is used."""
        return [
            self.amount(name)
            for name, limit in self._limits
            if name != "concurrent" and self.used(name) >= limit * self._warn_at
        ]


class Budgets:
    """All budgets and their counts. Changes nothing but its own memory.

    The counts are exact if ``restore`` gets the usage of the current month once, before the first prediction
    ends, and ``add``, ``remove`` and ``count`` get every prediction.
    """

    def __init__(
        self,
        budgets: Iterable[Budget] = (),
        policy: Policy | None = None,
        prices: Mapping[str, float] | None = None,
        currency: str = "",
    ) -> None:
        """``policy`` has the groups of accounts; ``prices`` are in ``currency`` per second, by hardware."""
        self._today = -1  # days since 1970; -1: not known yet
        self._days: _Periods = {}
        self._months: _Periods = {}
        self._unfinished: dict[str, _Unfinished] = {}  # by id
        self._outdated = False  # whether the groups of accounts have changed since the last count
        self.configure(budgets, policy or Policy(), prices or {}, currency)

    def __bool__(self) -> bool:
        return bool(self._budgets)

    def configure(
        self, budgets: Iterable[Budget], policy: Policy, prices: Mapping[str, float], currency: str
    ) -> None:
        """Replace the budgets; what was counted before counts for the new budgets too."""
        self._budgets = tuple(budgets)
        self._replaced_by = replacements(self._budgets)
        self._by_account: dict[str | None, list[Numbered]] = {}
        for numbered in enumerate(self._budgets):
            self._by_account.setdefault(numbered[1].account, []).append(numbered)
        self._policy = policy
        self._prices = prices
        self._currency = currency
        self._rebuild()

    # -- counting ----------------------------------------------------------------------------------------

    def restore(self, rows: Iterable[Usage], now: float) -> None:
        """Set the usage of the current month: rows by day, owner, token, model and hardware."""
        self._today = int(now // _DAY)
        self._days.clear()
        self._months.clear()
        for text, of_day in groupby(sorted(rows, key=_day_of), key=_day_of):
            day = int(datetime.fromisoformat(f"{text}T00:00:00Z").timestamp() // _DAY)
            days, months = _period(self._days, day), _period(self._months, _first_of_month(day))
            for row in of_day:
                key = _Ended(row.owner or "", row.token or "", row.model or "", row.hardware or "")
                for sums in (days.setdefault(key, _Sums()), months.setdefault(key, _Sums())):
                    sums.add(row.predictions, row.predict_us, row.input_tokens + row.output_tokens)
        self._rebuild()

    def add(self, prediction: Prediction) -> None:
        """Count an unfinished prediction."""
        owner, token, model = prediction.owner, prediction.token or "", prediction.model
        counters = self._counters_of(owner, token, model)
        added = _Unfinished(owner, token, model, prediction.parent is not None, counters)
        self._unfinished[prediction.id] = added
        for counter in counters:
            counter.add(prediction.id, child=added.child)

    def remove(self, id: str) -> None:
        """Stop to count a prediction, because it could not be stored."""
        removed = self._unfinished.pop(id, None)
        if removed is not None:
            for counter in removed.counters:
                counter.discard(id)

    def count(self, record: Prediction) -> None:
        """Count the usage of a prediction whose end is stored, instead of counting it as unfinished."""
        self.remove(record.id)
        ended = record.completed_at if record.completed_at is not None else record.created_at
        day, hardware = int(ended // _DAY), record.hardware or ""
        if day > self._today:
            self._roll(ended)
        key = _Ended(record.owner, record.token or "", record.model, hardware)
        metrics = record.metrics
        predict_us = usage.microseconds(metrics.get("predict_time"))
        tokens = usage.count(metrics.get("input_token_count"))
        tokens += usage.count(metrics.get("output_token_count"))
        first = _first_of_month(day)
        for period in (_period(self._days, day), _period(self._months, first)):
            period.setdefault(key, _Sums()).add(1, predict_us, tokens)
        current = {"day": day == self._today, "month": first == _first_of_month(self._today)}
        for counter in self._counters_of(key.owner, key.token, key.model):
            if current[counter.budget.period]:
                counter.count(1, predict_us, tokens, usage.price(hardware, self._prices))

    def groups_changed(self, changed: frozenset[str]) -> None:
        """Count again before the next question, because an account has joined or left these groups."""
        self._outdated = self._outdated or any(budget.group in changed for budget in self._budgets)

    def erase_account(self, account: str) -> None:
        """Count the usage of an account as usage of no account, as the usage table does after an erasure."""
        for period in (*self._days.values(), *self._months.values()):
            for key in [key for key in period if key.owner == account]:
                sums = period.pop(key)
                erased = period.setdefault(key._replace(owner="", token=""), _Sums())
                erased.add(sums.predictions, sums.predict_us, sums.tokens)
        self._rebuild()

    def _counters_of(self, owner: str, token: str, model: str) -> tuple[_Counter, ...]:
        """Return the counters of all budgets that count a prediction."""
        if not self._budgets:
            return ()
        found = self._cache.get((owner, token, model))
        if found is None:
            if len(self._cache) >= self._max_cached:
                self._cache.clear()
                self._of_owner.clear()
            counting, groups = self._budgets_of(owner)
            chosen = of_prediction(counting, self._replaced_by, groups, owner, token, model)
            found = self._cache[owner, token, model] = tuple(self._counter(*each) for each in chosen)
        return found

    def _counter(self, number: int, budget: Budget, subject: Subject) -> _Counter:
        found = self._counters.get((number, subject))
        if found is None:
            found = self._counters[number, subject] = _Counter(budget, subject)
        return found

    def _budgets_of(self, owner: str) -> tuple[list[Numbered], frozenset[str]]:
        """Return the numbered budgets that count predictions of an account, and the account's groups."""
        found = self._of_owner.get(owner)
        if found is None:
            groups = frozenset(group.name for group in self._policy.groups_of(owner))
            numbered = sorted(
                (each for account in {None, EACH, owner} for each in self._by_account.get(account, ())),
                key=itemgetter(0),
            )
            counting = [each for each in numbered if each[1].counts_account(owner, groups)]
            found = self._of_owner[owner] = counting, groups
        return found

    def _rebuild(self) -> None:
        """Compute all counters again, because the budgets, the period or the groups have changed."""
        self._outdated = False
        self._counters: dict[tuple[int, Subject], _Counter] = {}  # by number of the budget, and subject
        self._cache: dict[tuple[str, str, str], tuple[_Counter, ...]] = {}
        self._of_owner: dict[str, tuple[list[Numbered], frozenset[str]]] = {}
        of_day = self._days.get(self._today, {})
        of_month = self._months.get(_first_of_month(self._today), {})
        # All are looked up here, and the most active ones soon again.
        self._max_cached = _MAX_CACHED + len(of_month) + len(self._unfinished)
        for id, each in self._unfinished.items():
            counters = self._counters_of(each.owner, each.token, each.model)
            self._unfinished[id] = each._replace(counters=counters)
            for counter in counters:
                counter.add(id, child=each.child)
        if not self._budgets:
            return
        for key, sums in of_month.items():
            price = usage.price(key.hardware, self._prices)
            for counter in self._counters_of(key.owner, key.token, key.model):
                counted = sums if counter.budget.period == "month" else of_day.get(key)
                if counted is not None:
                    counter.count(counted.predictions, counted.predict_us, counted.tokens, price)

    def _roll(self, now: float) -> None:
        """Begin the day of ``now``, in Unix seconds, if it is not the current day; count again if needed.

        The day may be earlier, because the clock was set back. Its usage is still known then.
        """
        if (today := int(now // _DAY)) != self._today or self._outdated:
            self._today = today
            self._rebuild()

    # -- questions ---------------------------------------------------------------------------------------

    def check(self, owner: str, token: str | None, model: str, *, child: bool, now: float) -> None:
        """Check that the budgets permit one more prediction. The caller must ``add`` it at once.

        The limit of concurrent predictions does not apply to a ``child``, because its parent waits for it.

        Raises:
            BudgetSpent: the seconds, tokens or cost of the period are used up.
            Throttled: the predictions of the period are used up, or too many predictions are unfinished.
        """
        if not self._budgets:
            return
        self._roll(now)
        for counter in self._counters_of(owner, token or "", model):
            for name in counter.spent():
                if not (child and name == "concurrent"):
                    raise self._refusal(counter, counter.amount(name), now)

    def warnings(self, owner: str, token: str | None, model: str, now: float) -> list[str]:
        """Return a sentence in ASCII for each limit of which the share ``warn_at`` is used."""
        if not self._budgets:
            return []
        self._roll(now)
        return [
            f"{counter.subject}: {self._described(counter, amount)}"
            for counter in self._counters_of(owner, token or "", model)
            for amount in counter.nearly_spent()
        ]

    def reports(self, owner: str | None, token: str | None, now: float) -> list[BudgetReport]:
        """Return the counts of the budgets of an account and its token; without ``owner``, of all budgets.

        A budget with a pattern has a report for each account, token or model that has asked for predictions.
        """
        self._roll(now)
        self._count_named()
        groups = frozenset(group.name for group in self._policy.groups_of(owner))
        return [
            BudgetReport(
                subject=subject,
                period=counter.budget.period,
                resets_at=_period_end(counter.budget.period, self._today),
                amounts=counter.amounts(),
            )
            for (_, subject), counter in sorted(self._counters.items(), key=_order)
            if owner is None
            or (
                subject.account in {None, owner}
                and subject.token in {None, token}
                and (subject.group is None or subject.group in groups)
            )
        ]

    def _count_named(self) -> None:
        """Create the counters of budgets whose keys are names, which may not have counted anything yet."""
        for number, budget in enumerate(self._budgets):
            named = (budget.account, budget.token, budget.model)
            if not any(map(is_pattern, named)):
                subject = Subject(budget.account, budget.group, budget.token, budget.model)
                self._counter(number, budget, subject)

    def _refusal(self, counter: _Counter, amount: Amount, now: float) -> BudgetSpent | Throttled:
        if amount.name == "concurrent":
            return Throttled(
                f"Request was throttled. The limit of unfinished predictions is reached: {counter.subject}: "
                f"{amount.used:.0f} of {amount.limit:.0f}. Try again when one of them has ended.",
                retry_after=_RETRY,
            )
        wait = math.ceil(_period_end(counter.budget.period, self._today) - now)
        text = f"{counter.subject}: {self._described(counter, amount)}."
        if amount.name == "predictions":
            return Throttled(f"Request was throttled. The budget is spent: {text}", retry_after=wait)
        return BudgetSpent(f"The budget is spent: {text}", retry_after=wait)

    def _described(self, counter: _Counter, amount: Amount) -> str:
        budget = counter.budget
        used, limit = (_number(each, amount.name) for each in (amount.used, amount.limit))
        unit = self._currency if amount.name == "cost" else amount.name
        at = datetime.fromtimestamp(_period_end(budget.period, self._today), UTC)
        spent = f"{used} of {limit} {unit} of this {budget.period} are used"
        return f"{spent}; resets at {at:%Y-%m-%d %H:%M} UTC"


def _period(periods: _Periods, first: int) -> dict[_Ended, _Sums]:
    """Return the usage of the period that begins with the day ``first``; forget old periods."""
    found = periods.get(first)
    if found is None:
        found = periods[first] = {}
        for oldest in list(periods)[:-_KEPT]:
            del periods[oldest]
    return found


def _first_of_month(day: int) -> int:
    return day - datetime.fromtimestamp(day * _DAY, UTC).day + 1


def _day_of(row: Usage) -> str:
    return row.day or ""


def _order(item: tuple[tuple[int, Subject], _Counter]) -> tuple[int, str]:
    (number, subject), _ = item
    return number, str(subject)


def _number(value: float, amount: str) -> str:
    decimals = {"cost": 6, "seconds": 1}.get(amount, 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _period_end(period: Literal["day", "month"], today: int) -> float:
    """Return the end of the period that contains ``today``, in Unix seconds."""
    if period == "day":
        return float((today + 1) * _DAY)
    first = datetime.fromtimestamp(today * _DAY, UTC).replace(day=1)
    year, month = (first.year + 1, 1) if first.month == 12 else (first.year, first.month + 1)
    return first.replace(year=year, month=month).timestamp()
