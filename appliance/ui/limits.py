"""The limits of accounts, groups, tokens and models on the usage page: a table, and alerts."""

from __future__ import annotations

from typing import Final

from markupsafe import Markup

from appliance.protocols.limit_types import BudgetResponse, LimitedAmount, LimitsResponse
from appliance.ui import markup
from appliance.ui.alerts import Alert
from appliance.ui.languages import gettext as _
from appliance.ui.languages import translatable

#: What is limited, and the period -> its text.
_LIMITS: Final = {
    ("predictions", "day"): translatable("Predictions per day"),
    ("predictions", "month"): translatable("Predictions per month"),
    ("seconds", "day"): translatable("Run time per day"),
    ("seconds", "month"): translatable("Run time per month"),
    ("tokens", "day"): translatable("Tokens per day"),
    ("tokens", "month"): translatable("Tokens per month"),
    ("cost", "day"): translatable("Cost per day"),
    ("cost", "month"): translatable("Cost per month"),
    ("concurrent", "day"): translatable("Unfinished predictions"),
    ("concurrent", "month"): translatable("Unfinished predictions"),
}
#: Key of a budget -> its text.
_SUBJECTS: Final = {
    "account": translatable("Account {name}"),
    "group": translatable("Group {name}"),
    "token": translatable("Token {name}"),
    "model": translatable("Model {name}"),
}


def table(found: LimitsResponse) -> Markup:
    """Return a table of all limits; empty HTML if there are none."""
    rows = [
        [
            _subject(budget),
            _(_LIMITS[amount.name, budget.per]),
            _used(amount, found.currency),
            Markup() if amount.name == "concurrent" else markup.moment(budget.resets_at),
        ]
        for budget in found.budgets
        for amount in budget.amounts
    ]
    return markup.table([_("Applies to"), _("Limit"), _("Used"), _("Resets")], rows)


def alerts(found: LimitsResponse) -> list[Alert]:
    """Return an alert for each limit that is spent or nearly spent, the spent ones first."""
    texts = {
        "spent": _("{subject}: {limit}: {used}. New predictions are refused."),
        "warning": _("{subject}: {limit}: {used}."),
    }
    alerts = [
        Alert(
            "bad" if amount.state == "spent" else "busy",
            texts[amount.state].format(
                subject=_subject(budget),
                limit=_(_LIMITS[amount.name, budget.per]),
                used=_used(amount, found.currency),
            ),
        )
        for budget in found.budgets
        for amount in budget.amounts
        if amount.state != "ok"
    ]
    return sorted(alerts, key=lambda alert: alert.severity)


def _subject(budget: BudgetResponse) -> str:
    names = {
        "account": budget.account,
        "group": budget.group,
        "token": budget.token_name or budget.token,
        "model": budget.model,
    }
    return ", ".join(
        _(text).format(name=name) for key, text in _SUBJECTS.items() if (name := names[key]) is not None
    )


def _used(amount: LimitedAmount, currency: str | None) -> str:
    def shown(value: float) -> str:
        if amount.name == "cost":
            return markup.money(value, currency)
        return markup.duration(value) if amount.name == "seconds" else f"{value:,.0f}"

    return _("{used} of {limit} used").format(used=shown(amount.used), limit=shown(amount.limit))
