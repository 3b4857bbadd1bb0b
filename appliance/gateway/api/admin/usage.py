"""Routes for usage and its cost, as JSON and CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import usage
from appliance.domain.errors import FieldProblem, InvalidInput
from appliance.domain.token import Scope, Token
from appliance.domain.usage import KEYS, Priced
from appliance.gateway.api import requests, responses
from appliance.gateway.api.admin.tokens import token_names
from appliance.gateway.api.services import services_of
from appliance.protocols.admin_types import UsageResponse, UsageRow

DAYS: Final = 30  # of usage, by default
#: First characters of formulas in spreadsheets.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


async def get_usage(request: Request) -> Response:
    """``GET /admin/usage?from=&to=&by=``: days in UTC, both included, and some of ``usage.KEYS``.

    An admin token sees the usage of all owners, any other token that of its own owner. With
    ``Accept: text/csv`` the response is that of ``/admin/usage.csv``.
    """
    if "text/csv" in request.headers.get("accept", ""):
        return await get_usage_csv(request)
    caller = await requests.caller(request, Scope.READ)
    first, last, by = _asked(request)
    prices = services_of(request).config.prices
    rows = await _rows(request, caller, first, last, by)
    names = await token_names(request, caller) if "token" in by else {}
    return responses.json(
        UsageResponse(
            first=first,
            last=last,
            by=by,
            currency=prices.currency if prices.per_second else None,
            rows=[_row(each, by, names) for each in usage.table(rows, by, prices.per_second)],
            total=_row(usage.total(rows, prices.per_second), (), {}),
        )
    )


async def get_usage_csv(request: Request) -> Response:
    """``GET /admin/usage.csv``: the rows of ``GET /admin/usage``, with a header line."""
    caller = await requests.caller(request, Scope.READ)
    first, last, by = _asked(request)
    prices = services_of(request).config.prices
    rows = await _rows(request, caller, first, last, by)
    names = await token_names(request, caller) if "token" in by else {}
    columns = list(msgspec.to_builtins(_row(usage.total((), {}), by, {})))
    written = io.StringIO()
    lines = csv.DictWriter(written, [*columns, "currency"], lineterminator="\r\n")
    lines.writeheader()
    for each in usage.table(rows, by, prices.per_second):
        row = msgspec.to_builtins(_row(each, by, names))
        cells = {name: cell(value) for name, value in row.items()}
        lines.writerow({**cells, "currency": prices.currency if each.cost is not None else ""})
    name = f"usage-{first}-{last}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(written.getvalue(), 200, headers, "text/csv; charset=utf-8")


async def _rows(request: Request, caller: Token, first: str, last: str, by: list[str]) -> list[usage.Usage]:
    owner = None if caller.sees_all else caller.owner
    return await services_of(request).store.usage.rows(by, first=first, last=last, owner=owner)


def _asked(request: Request) -> tuple[str, str, list[str]]:
    """Return the first day, the last day and the keys to group by.

    Raises:
        InvalidInput: a query parameter is not valid.
    """
    today = date.fromisoformat(usage.day(time.time()))
    last = _day(request, "to", today)
    first = _day(request, "from", max(date.min + timedelta(DAYS), last) - timedelta(days=DAYS - 1))
    if first > last:
        raise InvalidInput([FieldProblem("number_lte", "from", "Must not be a later day than to")])
    by = [part.strip() for part in request.query_params.get("by", "day").split(",") if part.strip()]
    unknown = [part for part in by if part not in KEYS]
    if unknown:
        described = f"by must be some of the following, with commas between: {', '.join(KEYS)}"
        raise InvalidInput([FieldProblem("enum", "by", described)])
    return first.isoformat(), last.isoformat(), [key for key in KEYS if key in by]


def _day(request: Request, key: str, otherwise: date) -> date:
    text = request.query_params.get(key)
    if not text:
        return otherwise
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        described = "Does not match format 'date', such as 2026-01-31"
        raise InvalidInput([FieldProblem("format", key, described)]) from error


def _row(each: Priced, by: Sequence[str], token_names: dict[str, str]) -> UsageRow:
    used = each.usage
    keys = {key: getattr(used, key) for key in by}
    if "token" in by:
        keys["token_name"] = token_names.get(used.token or "")
    return UsageRow(
        predictions=used.predictions,
        succeeded=used.succeeded,
        failed=used.failed,
        canceled=used.canceled,
        aborted=used.aborted,
        predict_time=usage.seconds(used.predict_us),
        cold_starts=used.cold_starts,
        cold_start=usage.seconds(used.cold_start_us),
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cost=None if each.cost is None else float(each.cost),
        unpriced_time=usage.seconds(each.unpriced_us),
        **keys,
    )


def cell(value: Any) -> Any:
    """Return a CSV cell that spreadsheets do not run as a formula; numbers have no exponents."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


ROUTES: Final = (
    Route("/admin/usage", get_usage, methods=["GET"]),
    Route("/admin/usage.csv", get_usage_csv, methods=["GET"]),
)
