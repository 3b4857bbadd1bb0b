"""Budgets: limits on the predictions, seconds, tokens and cost of accounts, groups, tokens and models. Pure.

Amounts are those of the usage table: a prediction counts in the day and month (UTC) in which it ended. An
unfinished prediction counts as one prediction of the current day and month, without seconds, tokens and cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal, NamedTuple

import msgspec

from appliance.domain import usage
from appliance.domain.access import Policy, matches
from appliance.domain.errors import BudgetSpent, Throttled
from appliance.domain.prediction import Prediction
from appliance.domain.usage import Usage

#: Pattern for every account or token that no other budget with the same keys names.
EACH: Final = "*"
AmountName = Literal["cost", "seconds", "tokens", "predictions", "concurrent"]
#: The limited amounts of a period, in the order in which they are checked.
PERIOD_AMOUNTS: Final[tuple[AmountName, ...]] = ("cost", "seconds", "tokens", "predictions")
#: The keys that say what a budget counts for.
SUBJECT_KEYS: Final = ("account", "group", "token", "model")

_DAY: Final = 86400
_RETRY: Final = 1  # seconds after which a request that exceeded `concurrent` may be repeated
_MAX_CACHED: Final = 10_000  # combinations of account, token and model


class Subject(NamedTuple):
    """What a budget counts for. A key that the budget does not have is None."""

    account: str | None = None
    group: str | None = None
    token: str | None = None  # id
    model: str | None = None

    def __str__(self) -> str:
        named = (f"{key} {json.dumps(value)}" for key, value in self._asdict().items() if value is not None)
        return ", ".join(named)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on the predictions that match all given keys; None is no limit."""

    account: str | None = None  # username or EACH
    group: str | None = None
    token: str | None = None  # id or EACH
    model: str | None = None  # name or pattern; each model that matches has its own counts
    period: Literal["day", "month"] = "day"
    concurrent: int | None = None  # unfinished predictions
    predictions: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    cost: float | None = None
    warn_at: float = 0.8  # share of a limit

    def subject(self, owner: str, groups: frozenset[str], token: str, model: str) -> Subject | None:
        """Return what the budget counts a prediction for; None if it does not count the prediction."""
        if self.account not in {None, EACH, owner} or (self.group is not None and self.group not in groups):
            return None
        if self.token is not None and (not token or self.token not in {EACH, token}):
            return None
        if self.model is not None and not matches(model, (self.model,)):
            return None
        return Subject(
            None if self.account is None else owner,
            self.group,
            None if self.token is None else token,
            None if self.model is None else model,
        )

    def replaces(self, other: Budget) -> bool:
        """Return whether ``other`` has the same keys, but patterns where this budget has names."""
        own, others = self._named(), other._named()
        return (
            self.group == other.group
            and [each is None for each in own] == [each is None for each in others]
            and own != others
            and all(mine == its or not _is_pattern(mine) for mine, its in zip(own, others, strict=True))
        )

    def _named(self) -> tuple[str | None, ...]:
        return self.account, self.token, self.model


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
    """Usage of ended predictions with the same day, account, token, model and hardware."""

    __slots__ = ("predict_us", "predictions", "tokens")

    def __init__(self) -> None:
        self.predictions = self.predict_us = self.tokens = 0


class _Ended(NamedTuple):
    day: int  # days since 1970
    owner: str
    token: str
    model: str
    hardware: str


class _Unfinished(NamedTuple):
    owner: str
    token: str
    model: str
    child: bool


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
        self._ended: dict[_Ended, _Sums] = {}  # of the current month
        self._unfinished: dict[str, _Unfinished] = {}  # by id
        self.configure(budgets, policy or Policy(), prices or {}, currency)

    def __bool__(self) -> bool:
        return bool(self._budgets)

    def configure(
        self, budgets: Iterable[Budget], policy: Policy, prices: Mapping[str, float], currency: str
    ) -> None:
        """Replace the budgets; what was counted before counts for the new budgets too."""
        self._budgets = tuple(budgets)
        self._policy = policy
        self._prices = prices
        self._currency = currency
        self._rebuild()

    # -- counting ----------------------------------------------------------------------------------------

    def restore(self, rows: Iterable[Usage], now: float) -> None:
        """Set the usage of the current month: rows by day, owner, token, model and hardware."""
        self._today = int(now // _DAY)
        self._ended.clear()
        for row in rows:
            day = int(datetime.fromisoformat(f"{row.day}T00:00:00Z").timestamp() // _DAY)
            key = _Ended(day, row.owner or "", row.token or "", row.model or "", row.hardware or "")
            sums = self._ended.setdefault(key, _Sums())
            sums.predictions += row.predictions
            sums.predict_us += row.predict_us
            sums.tokens += row.input_tokens + row.output_tokens
        self._rebuild()

    def add(self, prediction: Prediction) -> None:
        """Count an unfinished prediction."""
        added = _Unfinished(
            prediction.owner, prediction.token or "", prediction.model, prediction.parent is not None
        )
        self._unfinished[prediction.id] = added
        if self._budgets:
            for counter in self._counters_of(added.owner, added.token, added.model):
                counter.add(prediction.id, child=added.child)

    def remove(self, id: str) -> None:
        """Stop to count a prediction, because it could not be stored."""
        removed = self._unfinished.pop(id, None)
        if removed is not None and self._budgets:
            for counter in self._counters_of(removed.owner, removed.token, removed.model):
                counter.discard(id)

    def count(self, record: Prediction) -> None:
        """Count the usage of a prediction whose end is stored, instead of counting it as unfinished."""
        self.remove(record.id)
        ended = record.completed_at if record.completed_at is not None else record.created_at
        day, hardware = int(ended // _DAY), record.hardware or ""
        if day > self._today:
            self._roll(ended)
        key = _Ended(day, record.owner, record.token or "", record.model, hardware)
        metrics = record.metrics
        predict_us = usage.microseconds(metrics.get("predict_time"))
        tokens = usage.count(metrics.get("input_token_count"))
        tokens += usage.count(metrics.get("output_token_count"))
        sums = self._ended.get(key)
        if sums is None:
            sums = self._ended[key] = _Sums()
        sums.predictions += 1
        sums.predict_us += predict_us
        sums.tokens += tokens
        if self._budgets:
            for counter in self._counters_of(key.owner, key.token, key.model):
                if self._is_current(day, counter.budget):
                    counter.count(1, predict_us, tokens, usage.price(hardware, self._prices))

    def _counters_of(self, owner: str, token: str, model: str) -> tuple[_Counter, ...]:
        """Return the counters of all budgets that count a prediction."""
        found = self._cache.get((owner, token, model))
        if found is not None:
            return found
        groups = frozenset(group.name for group in self._policy.groups_of(owner))
        subjects = [
            (number, budget, subject)
            for number, budget in enumerate(self._budgets)
            if (subject := budget.subject(owner, groups, token, model)) is not None
        ]
        found = tuple(
            self._counters.setdefault((number, subject), _Counter(budget, subject))
            for number, budget, subject in subjects
            if not any(other.replaces(budget) for _, other, _ in subjects)
        )
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[owner, token, model] = found
        return found

    def _rebuild(self) -> None:
        """Compute all counters again, because the budgets or the period have changed."""
        self._counters: dict[tuple[int, Subject], _Counter] = {}  # by number of the budget, and subject
        self._cache: dict[tuple[str, str, str], tuple[_Counter, ...]] = {}
        if not self._budgets:
            return
        for id, each in self._unfinished.items():
            for counter in self._counters_of(each.owner, each.token, each.model):
                counter.add(id, child=each.child)
        for key, sums in self._ended.items():
            price = usage.price(key.hardware, self._prices)
            for counter in self._counters_of(key.owner, key.token, key.model):
                if self._is_current(key.day, counter.budget):
                    counter.count(sums.predictions, sums.predict_us, sums.tokens, price)

    def _roll(self, now: float) -> None:
        """Begin the day of ``now``, in Unix seconds, if it is not the current day."""
        if (today := int(now // _DAY)) != self._today:
            self._today = today
            first = self._first_of_month()
            self._ended = {key: sums for key, sums in self._ended.items() if key.day >= first}
            self._rebuild()

    def _is_current(self, day: int, budget: Budget) -> bool:
        first = self._today if budget.period == "day" else self._first_of_month()
        return first <= day <= self._today

    def _first_of_month(self) -> int:
        return self._today - datetime.fromtimestamp(self._today * _DAY, UTC).day + 1

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
            if not any(map(_is_pattern, named)):
                subject = Subject(budget.account, budget.group, budget.token, budget.model)
                self._counters.setdefault((number, subject), _Counter(budget, subject))

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


def of_account(budgets: Iterable[Budget], policy: Policy, account: str) -> list[Budget]:
    """Return the budgets that count predictions of the account, some only those of a token or a model."""
    groups = {group.name for group in policy.groups_of(account)}
    found = [
        budget
        for budget in budgets
        if budget.account in {None, EACH, account} and (budget.group is None or budget.group in groups)
    ]
    return [budget for budget in found if not any(other.replaces(budget) for other in found)]


def _order(item: tuple[tuple[int, Subject], _Counter]) -> tuple[int, str]:
    (number, subject), _ = item
    return number, str(subject)


def _is_pattern(name: str | None) -> bool:
    return name is not None and "*" in name


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
