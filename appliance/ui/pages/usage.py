"""The usage page: limits, and run time, tokens and cost by model, token, account, hardware or day."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols.admin_types import UsageResponse, UsageRow
from appliance.protocols.limit_types import LimitsResponse
from appliance.ui import chart, limits, markup, session, template_pages
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext, translatable

#: Days of a period.
_PERIODS: Final = ("7", "30", "90", "365")
_PERIOD: Final = "30"  # by default
_KEYS: Final = {
    "day": translatable("Day"),
    "model": translatable("Model"),
    "token": translatable("Token"),
    "owner": translatable("Account"),
    "hardware": translatable("Hardware"),
}
_KEY: Final = "model"  # by default
#: What the charts show -> its text.
_AMOUNTS: Final = {
    "predict_time": translatable("Run time"),
    "predictions": translatable("Predictions"),
    "output_tokens": translatable("Tokens out"),
    "cost": translatable("Cost"),
}
#: Units of run time: the least that a chart shows in it, its seconds, its text.
_TIME_UNITS: Final = (
    (2 * 3600, 3600, translatable("{n} h")),
    (120, 60, translatable("{n} min")),
    (1, 1, translatable("{n} s")),
    (1e-9, 0.001, translatable("{n} ms")),
    (0, 1, translatable("{n} s")),
)
#: The least height of an axis, so that counts have no fractions.
_CEILINGS: Final = {"predictions": 4.0, "output_tokens": 4.0}
_BARS: Final = 10  # of a ranking; the others are one bar
#: Titles of charts: what a chart shows, and by what.
_TITLES: Final = {
    ("predict_time", "day"): translatable("Run time by day"),
    ("predictions", "day"): translatable("Predictions by day"),
    ("output_tokens", "day"): translatable("Tokens out by day"),
    ("cost", "day"): translatable("Cost by day"),
    ("predict_time", "model"): translatable("Run time by model"),
    ("predictions", "model"): translatable("Predictions by model"),
    ("output_tokens", "model"): translatable("Tokens out by model"),
    ("cost", "model"): translatable("Cost by model"),
    ("predict_time", "owner"): translatable("Run time by account"),
    ("predictions", "owner"): translatable("Predictions by account"),
    ("output_tokens", "owner"): translatable("Tokens out by account"),
    ("cost", "owner"): translatable("Cost by account"),
}


class _Chosen:
    """The choices in the address of the page; choices that do not exist are the default."""

    def __init__(self, request: Request) -> None:
        query = request.query_params
        self.days = query.get("days", _PERIOD) if query.get("days") in _PERIODS else _PERIOD
        self.by = [key for key in _KEYS if key in query.getlist("by")] or [_KEY]
        self.amount = query.get("amount", "") if query.get("amount") in _AMOUNTS else "predict_time"

    @property
    def first(self) -> str:
        """The first day of the period, in UTC."""
        return (datetime.now(UTC).date() - timedelta(days=int(self.days) - 1)).isoformat()

    @property
    def query(self) -> str:
        return urlencode([("days", self.days), *(("by", key) for key in self.by), ("amount", self.amount)])


async def show(request: Request) -> Response:
    chosen = _Chosen(request)
    found = await session.current(request).caller.get_as(LimitsResponse, "/admin/limits")
    return template_pages.respond(
        request,
        "usage.html",
        title=_("Usage"),
        chosen=chosen,
        periods=[(days, _("{n} days").format(n=days)) for days in _PERIODS],
        keys=[(key, _(text)) for key, text in _KEYS.items()],
        amounts=[(amount, _(text)) for amount, text in _AMOUNTS.items()],
        limits=limits.table(found),
        alerts=limits.alerts(found),
        report=await _report(request, chosen),
    )


async def report(request: Request) -> Response:
    """Return the report alone, and put its choices into the address of the page."""
    chosen = _Chosen(request)
    found = template_pages.fragment("usage_report.html", report=await _report(request, chosen))
    found.headers["HX-Replace-Url"] = f"{session.prefix(request)}/usage?{chosen.query}"
    return found


async def csv(request: Request) -> Response:
    chosen = _Chosen(request)
    query = urlencode({"from": chosen.first, "by": ",".join(chosen.by)})
    written = await session.current(request).caller.text(f"/admin/usage.csv?{query}")
    name = f"usage-{chosen.first}-{datetime.now(UTC).date().isoformat()}.csv"
    headers = {**template_pages.HEADERS, "content-disposition": f'attachment; filename="{name}"'}
    return Response(written, headers=headers, media_type="text/csv; charset=utf-8")


async def _report(request: Request, chosen: _Chosen) -> dict[str, Any]:
    caller, path = session.current(request).caller, "/admin/usage"
    first = {"from": chosen.first}
    found = await caller.get_as(UsageResponse, path, **first, by=",".join(chosen.by))
    days = await caller.get_as(UsageResponse, path, **first, by="day")
    models = await caller.get_as(UsageResponse, path, **first, by="model")
    accounts = await caller.get_as(UsageResponse, path, **first, by="owner")
    charts = [
        render_days(days, chosen.amount),
        render_ranking(models, "model", chosen.amount),
        render_ranking(accounts, "owner", chosen.amount),
    ]
    return {
        "totals": render_totals(found),
        "charts": charts if found.rows else [],
        "table": render(found),
        "csv": f"/usage/csv?{chosen.query}",
    }


def render_totals(report: UsageResponse) -> Markup:
    total = report.total
    share = total.cold_starts / total.predictions if total.predictions else 0.0
    return markup.tiles(
        {
            _("predictions"): f"{total.predictions:,}",
            _("run time"): markup.duration(total.predict_time),
            _("cost"): markup.money(total.cost, report.currency) or _("no prices"),
            _("tokens in"): f"{total.input_tokens:,}",
            _("tokens out"): f"{total.output_tokens:,}",
            _("waited for a load"): f"{100 * share:.0f} %",
        }
    )


def render_days(report: UsageResponse, amount: str) -> Markup:
    """Return a chart with a column for each day of the period."""
    values = {str(row.day): _amount(row, amount) for row in report.rows}
    first, last = (datetime.fromisoformat(day).date() for day in (report.first, report.last))
    names = [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]
    shown, unit = _shown(report, amount, max(values.values(), default=0.0))
    drawing = chart.columns(
        [(name, values.get(name, 0.0)) for name in names],
        shown=shown,
        unit=unit,
        ceiling=_CEILINGS.get(amount, 0.0),
    )
    title = _(_TITLES[amount, "day"])
    busiest = max(values, key=lambda day: values[day], default="")
    most = "" if not values else shown(values[busiest])
    text = _("{title}, in UTC: the most on {day}, {amount}") if values else _("{title}: none")
    label = text.format(title=title, day=busiest, amount=most)
    listed = {name: values[name] for name in names if name in values}
    return _chart(drawing, ("days", "day", amount), label, listed, shown)


def render_ranking(report: UsageResponse, key: str, amount: str) -> Markup:
    """Return a chart with a bar for each of the values of ``key`` with the most usage."""
    values = {_named(row, key): _amount(row, amount) for row in report.rows}
    ranked = sorted(((name, value) for name, value in values.items() if value), key=lambda item: -item[1])
    rest = ranked[_BARS:]
    bars = ranked[:_BARS]
    if rest:
        others = ngettext("{number} other", "{number} others", len(rest)).format(number=len(rest))
        bars.append((others, sum(value for _name, value in rest)))
    shown, _unit = _shown(report, amount, max(values.values(), default=0.0))
    name, value = ranked[0] if ranked else ("", 0.0)
    text = _("{title}: the most by {name}, {amount}") if ranked else _("{title}: none")
    label = text.format(title=_(_TITLES[amount, key]), name=name, amount=shown(value))
    drawing = chart.ranking(bars, shown=shown, css_class="c1")
    return _chart(drawing, (key, key, amount), label, dict(ranked), shown)


def _chart(
    drawing: chart.Drawing,
    about: tuple[str, str, str],
    label: str,
    values: dict[str, float],
    shown: Callable[[float], str],
) -> Markup:
    """Return a chart. ``about`` is its id, a key in ``_KEYS`` and a key in ``_AMOUNTS``."""
    id, by, amount = about
    headings = [_(_KEYS[by]), _(_AMOUNTS[amount])]
    rows = markup.table(headings, [[key, shown(value)] for key, value in values.items()])
    return markup.chart(drawing, id=f"chart-{id}", title=_(_TITLES[amount, by]), label=label, rows=rows)


def _amount(row: UsageRow, amount: str) -> float:
    return float(getattr(row, amount) or 0.0)


def _shown(report: UsageResponse, amount: str, highest: float) -> tuple[Callable[[float], str], float]:
    """Return a function that formats amounts up to ``highest`` for a chart, and the unit of its axis."""
    if amount == "predict_time":
        _least, unit, text = next(each for each in _TIME_UNITS if highest >= each[0])
        step = chart.ticks(highest, unit)[1] / unit
        decimals = max(2, 1 - math.floor(math.log10(step)))
        return lambda value: _(text).format(n=_short(value / unit, decimals)), unit
    if amount == "cost":
        return lambda value: markup.money(value, report.currency or ""), 1.0
    return _short, 1.0


def _short(value: float, decimals: int = 2) -> str:
    return f"{value:,.{decimals}f}".rstrip("0").rstrip(".")


def render(report: UsageResponse) -> Markup:
    keys = report.by
    headings = [
        *(_(_KEYS[key]) for key in keys),
        _("Predictions"), _("Failed"), _("Seconds"), _("Cost"), _("Tokens in"), _("Tokens out"),
        _("Cold starts"),
    ]  # fmt: skip
    nothing = markup.empty(
        _("No usage"),
        Markup(  # noqa: S704 - our text
            _('No prediction ended in this period: <a href="./">run a model</a>, or choose a longer period.')
        ),
    )
    rows = [
        [
            *(_named(each, key) for key in keys),
            f"{each.predictions:,}",
            f"{each.failed:,}",
            f"{each.predict_time:,.6f}",
            markup.money(each.cost, report.currency),
            f"{each.input_tokens:,}",
            f"{each.output_tokens:,}",
            f"{100 * each.cold_starts / each.predictions if each.predictions else 0:.0f} %",
        ]
        for each in report.rows
    ]
    return markup.table(headings, rows, if_empty=nothing)


def _named(row: UsageRow, key: str) -> str:
    named = row.token_name if key == "token" else None
    return str(named or getattr(row, key) or _("unknown"))


ROUTES: Final = (Route("/usage", show), Route("/usage/report", report), Route("/usage/csv", csv))
