"""The route that shows what is used and left of the budgets in models.yaml."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.budgets import Amount, BudgetReport
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests, responses
from appliance.gateway.api.admin.tokens import token_names
from appliance.gateway.api.services import Services, services_of
from appliance.protocols.limit_types import BudgetResponse, LimitedAmount, LimitsResponse
from appliance.protocols.serializers import timestamp


async def get_limits(request: Request) -> Response:
    """``GET /admin/limits``: the budgets that count the caller's predictions; for administrators all."""
    caller = await requests.caller(request, Scope.READ)
    services = services_of(request)
    owner = None if caller.sees_all else caller.owner
    found = services.engine.budgets.reports(owner, caller.id, time.time())
    shown = [each for each in found if _may_see(services, caller, each.subject.model)]
    names = await token_names(request, caller) if any(each.subject.token for each in shown) else {}
    prices = services.config.prices
    return responses.json(
        LimitsResponse(
            currency=prices.currency if prices.per_second else None,
            budgets=[_budget(each, names) for each in shown],
        )
    )


def _may_see(services: Services, caller: Token, model: str | None) -> bool:
    """Return whether the caller may know the name of a budget's model; None: the budget has no model."""
    if model is None or caller.sees_all:
        return True
    card = services.catalogue.cards.get(model)
    return caller.access.allows(model) and (card is None or card.visible(caller.access))


def _budget(report: BudgetReport, names: Mapping[str, str]) -> BudgetResponse:
    subject = report.subject
    return BudgetResponse(
        account=subject.account,
        group=subject.group,
        token=subject.token,
        token_name=names.get(subject.token or ""),
        model=subject.model,
        per=report.period,
        resets_at=timestamp(report.resets_at),
        amounts=[_amount(each) for each in report.amounts],
    )


def _amount(amount: Amount) -> LimitedAmount:
    left = max(0.0, amount.limit - amount.used)
    return LimitedAmount(
        name=amount.name, used=amount.used, limit=amount.limit, left=round(left, 6), state=amount.state
    )


ROUTES: Final = (Route("/admin/limits", get_limits, methods=["GET"]),)
