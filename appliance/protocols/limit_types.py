"""Responses about the limits of accounts, groups, tokens and models."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from appliance.protocols.response_types import Time


class LimitedAmount(Struct, kw_only=True):
    """How much of one limit is used."""

    name: Literal["predictions", "seconds", "tokens", "cost", "concurrent"]
    used: float
    limit: float
    left: float
    state: Annotated[
        Literal["ok", "warning", "spent"], Meta(description="spent: new predictions are refused")
    ]


class BudgetResponse(Struct, kw_only=True):
    """A budget of models.yaml, and what is used of it. A key that the budget does not have is null."""

    account: str | None
    group: str | None
    token: Annotated[str | None, Meta(description="Id of the token")]
    token_name: str | None
    model: str | None
    per: Literal["day", "month"]
    resets_at: Annotated[Time, Meta(description="End of the day or month, in UTC")]
    amounts: list[LimitedAmount]


class LimitsResponse(Struct, kw_only=True):
    """The budgets that count the caller's predictions; for administrators all budgets."""

    currency: Annotated[str | None, Meta(description="Of cost; null without prices in models.yaml")]
    budgets: list[BudgetResponse]


RESPONSES: Final = (LimitsResponse,)
