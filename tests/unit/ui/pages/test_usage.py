"""The usage page: its choices, charts, table and CSV."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.access import Policy
from appliance.domain.budget_rules import Budget
from appliance.protocols.admin_types import UsageResponse
from appliance.protocols.limit_types import LimitsResponse
from appliance.ui import limits
from appliance.ui.pages import usage
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.response_examples import completed
from tests.support.ui_client import Pages
from tests.unit.ui.test_markup import HOSTILE, inert


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


def report_of(text: str, **more: Any) -> UsageResponse:
    row = {
        "model": text, "token": text, "token_name": text, "predictions": 2, "failed": 0,
        "predict_time": 1.25, "cost": 0.5, "input_tokens": 3, "output_tokens": 4, "cold_starts": 1,
    }  # fmt: skip
    given = {"by": ["model", "token"], "currency": text, "rows": [row], "total": row}
    return completed(UsageResponse, {**given, "from": "2026-01-01", "to": "2026-01-31", **more})


def test_what_people_wrote_is_inert_in_totals_charts_and_table() -> None:
    for text in HOSTILE:
        report = report_of(text)
        said = inert(usage.render_totals(report) + usage.render(report)).said
        assert "50 %" in said
        assert text in said
        inert(usage.render_ranking(report, "model", "cost"))


def test_there_is_a_column_for_each_day_with_usage() -> None:
    row = {"day": "2026-01-30", "predictions": 7}
    read = inert(usage.render_days(report_of("x", by=["day"], rows=[row]), "predictions"))
    (label,) = [each["aria-label"] for tag, each in read.elements if tag == "svg"]
    assert label == "Predictions by day, in UTC: the most on 2026-01-30, 7"
    columns = [each for tag, each in read.elements if tag == "path" and each["class"] == "area c0"]
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("seconds", "ticks"),
    [
        (0.0, ["0 s", "1 s"]),
        (0.00002, ["0 ms", "0.005 ms", "0.01 ms", "0.015 ms", "0.02 ms"]),
        (0.004, ["0 ms", "1 ms", "2 ms", "3 ms", "4 ms"]),
        (1.0, ["0 s", "0.25 s", "0.5 s", "0.75 s", "1 s"]),
        (120.0, ["0 min", "0.5 min", "1 min", "1.5 min", "2 min"]),
    ],
)
def test_the_axis_of_run_times_has_a_label_of_its_own_for_each_line(seconds: float, ticks: list[str]) -> None:
    row = {"day": "2026-01-30", "predict_time": seconds}
    shown = usage.render_days(report_of("x", by=["day"], rows=[row]), "predict_time")
    assert re.findall(r'text-anchor="end">([0-9.]+ [a-z]+)<', shown) == ticks


async def test_the_choices_are_in_the_address_and_in_the_link_to_the_csv(pages: Pages, api: Api) -> None:
    await api.ended(await api.create(text="x"))
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/usage?days=7&by=model&by=day")
        assert '<option value="7" selected>' in page.text
        assert 'value="day" checked' in page.text
        assert "Run time by model" in page.text
        part = await browser.get(
            "/usage/report?days=7&by=day&amount=predictions", headers={"HX-Request": "true"}
        )
        assert part.headers["hx-replace-url"] == "/usage?days=7&by=day&amount=predictions"
        assert "Predictions by account" in part.text
        csv = await browser.get("/usage/csv?days=7&by=model")
        assert csv.text.startswith("model,predictions,")
        assert csv.headers["content-disposition"].startswith('attachment; filename="usage-')
        assert (await browser.get("/usage?days=x&by=y&amount=z")).status_code == 200


def limited(name: str, used: float, limit: float, state: str) -> dict[str, Any]:
    return {"name": name, "used": used, "limit": limit, "left": max(0.0, limit - used), "state": state}


def budget_of(text: str, *amounts: dict[str, Any], per: str = "day") -> dict[str, Any]:
    at = "2026-02-01T00:00:00.000000Z"
    named = {"account": text, "group": None, "token": "t1", "token_name": text, "model": None}
    return {**named, "per": per, "resets_at": at, "amounts": list(amounts)}


def test_limits_show_what_is_used_and_alert_when_little_is_left() -> None:
    for text in HOSTILE:
        budget = budget_of(
            text,
            limited("predictions", 3, 1000, "ok"),
            limited("cost", 1.5, 1.75, "warning"),
            limited("concurrent", 2, 2, "spent"),
            per="month",
        )
        found = completed(LimitsResponse, {"currency": "EUR", "budgets": [budget]})
        said = inert(limits.table(found)).said
        assert f"Account {text}, Token {text}" in said
        assert "Predictions per month" in said
        assert "3 of 1,000 used" in said
        spent, near = limits.alerts(found)
        assert spent.severity == "bad"
        assert spent.text.endswith("Unfinished predictions: 2 of 2 used. New predictions are refused.")
        assert near.text.endswith("Cost per month: 1.50 EUR of 1.75 EUR used.")


async def test_the_page_has_limits_only_if_there_are_any(pages: Pages, api: Api, bench: Bench) -> None:
    async with pages.signed_in(SECRET) as browser:
        assert 'id="limits"' not in (await browser.get("/usage")).text
        bench.engine.budgets.configure([Budget(account="me", predictions=1)], Policy(), {}, "EUR")
        await api.ended(await api.create(text="x"))
        page = (await browser.get("/usage")).text
    assert 'id="limits"' in page
    assert "Account me: Predictions per day: 1 of 1 used. New predictions are refused." in page
