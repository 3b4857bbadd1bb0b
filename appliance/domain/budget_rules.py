"""Which budgets count a prediction. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from appliance.domain.access import Policy, matches

#: Pattern for every account or token that no other budget with the same keys names.
EACH: Final = "*"
AmountName = Literal["cost", "seconds", "tokens", "predictions", "concurrent"]
#: The limited amounts of a period, in the order in which they are checked.
PERIOD_AMOUNTS: Final[tuple[AmountName, ...]] = ("cost", "seconds", "tokens", "predictions")
#: The keys that say what a budget counts for.
SUBJECT_KEYS: Final = ("account", "group", "token", "model")


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
        if not self.counts_account(owner, groups):
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

    def counts_account(self, owner: str, groups: frozenset[str]) -> bool:
        """Return whether the budget counts predictions of an account, which is "" if it was erased."""
        if self.account is not None and (not owner or self.account not in {EACH, owner}):
            return False
        return self.group is None or self.group in groups

    def replaces(self, other: Budget) -> bool:
        """Return whether ``other`` has the same keys, with patterns that match names of this budget."""
        own, others = self._named(), other._named()
        return (
            self.group == other.group
            and own != others
            and all(mine == its or _is_name_of(mine, its) for mine, its in zip(own, others, strict=True))
        )

    def _named(self) -> tuple[str | None, ...]:
        return self.account, self.token, self.model


#: A budget and its position in models.yaml.
Numbered = tuple[int, Budget]


def of_account(budgets: Iterable[Budget], policy: Policy, account: str) -> list[Budget]:
    """Return the budgets that count predictions of the account, some only those of a token or a model.

    A budget for each account is left out if another with the account's name takes its place. A budget with a
    pattern of tokens or models stays, because other budgets take its place only for some names.
    """
    groups = frozenset(group.name for group in policy.groups_of(account))
    found = [budget for budget in budgets if budget.counts_account(account, groups)]
    return [
        budget
        for budget in found
        if not any(
            other.replaces(budget) and (other.token, other.model) == (budget.token, budget.model)
            for other in found
        )
    ]


def replacements(budgets: Sequence[Budget]) -> dict[int, frozenset[int]]:
    """Return by the number of each budget with a pattern the numbers of the budgets that replace it."""
    return {
        number: frozenset(other for other, each in enumerate(budgets) if each.replaces(budget))
        for number, budget in enumerate(budgets)
        if any(map(is_pattern, (budget.account, budget.token, budget.model)))
    }


def of_prediction(
    budgets: Iterable[Numbered],
    replaced_by: Mapping[int, frozenset[int]],
    groups: frozenset[str],
    owner: str,
    token: str,
    model: str,
) -> list[tuple[int, Budget, Subject]]:
    """Return the numbered budgets that count a prediction, and what they count it for.

    ``replaced_by`` is from ``replacements``. ``groups`` are those of the owner. ``token`` is an id or "".
    """
    found = [
        (number, budget, subject)
        for number, budget in budgets
        if (subject := budget.subject(owner, groups, token, model)) is not None
    ]
    numbers = {number for number, _, _ in found}
    return [each for each in found if numbers.isdisjoint(replaced_by.get(each[0], ()))]


def _is_name_of(name: str | None, pattern: str | None) -> bool:
    """Return whether ``pattern`` is a pattern that matches ``name``, which is not a pattern."""
    if name is None or pattern is None or is_pattern(name) or not is_pattern(pattern):
        return False
    return matches(name, (pattern,))


def is_pattern(name: str | None) -> bool:
    return name is not None and "*" in name
