"""The usage page: run time, tokens and cost, grouped by model, token, account, hardware or day."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import gradio as gr
import pandas as pd
from markupsafe import Markup

from appliance.protocols.admin_types import UsageResponse, UsageRow
from appliance.ui import layout, markup, session

_SPANS: Final = {"7 days": 7, "30 days": 30, "90 days": 90, "365 days": 365}
_KEYS: Final = {"day": "Day", "model": "Model", "token": "Token", "owner": "Account", "hardware": "Hardware"}
_FROM_ZERO: Final = [0.0, None]
_EMPTY: Final = markup.empty(
    "No usage",
    Markup('No prediction ended in this period: <a href="./">run a model</a>, or choose a longer period.'),
)


def build() -> gr.Blocks:
    with layout.page("Usage") as blocks:
        with gr.Row(elem_classes="filters"):
            span = gr.Dropdown(label="The last", choices=list(_SPANS), value="30 days")
            keys = [(name, key) for key, name in _KEYS.items()]
            by = gr.Dropdown(label="By", choices=keys, value=["model"], multiselect=True)
            download = gr.DownloadButton("Download CSV", size="sm", elem_id="download")
        totals = gr.HTML(elem_id="totals", min_height=100, apply_default_css=False)
        with gr.Row():
            days = gr.BarPlot(x="day", y="seconds", title="Seconds by day", y_lim=_FROM_ZERO, height=260)
            models = gr.BarPlot(x="model", y="seconds", title="Seconds by model", sort="-y", height=260)
        table = gr.HTML(elem_id="usage", min_height=200, apply_default_css=False)
        shown = [totals, days, models, table, download]
        asked = [blocks.load, span.input, by.input]
        gr.on(asked, _show, [span, by], shown, trigger_mode="always_last", **layout.QUIET)
    return blocks


@layout.show_errors
async def _show(span: str, by: list[str], request: gr.Request) -> list[Any]:
    caller = session.of(request).caller
    first = (datetime.now(UTC).date() - timedelta(days=_SPANS.get(span, 30) - 1)).isoformat()
    keys = ",".join(key for key in _KEYS if key in by) or "day"
    path = "/admin/usage"
    chosen = await caller.get_as(UsageResponse, path, **{"from": first, "by": keys})
    days = await caller.get_as(UsageResponse, path, **{"from": first, "by": "day"})
    models = await caller.get_as(UsageResponse, path, **{"from": first, "by": "model"})
    # Gradio serves a file at the digest of its content, so only users who know the content can find it.
    file = Path(tempfile.mkdtemp(prefix="usage-")) / f"usage-{chosen.first}-{chosen.last}.csv"
    file.write_text(await caller.text(f"{path}.csv?from={first}&by={keys}"), encoding="utf-8")
    return [
        render_totals(chosen),
        _plotted(days, "day"),
        _plotted(models, "model"),
        render(chosen),
        gr.DownloadButton(value=str(file)),
    ]


def _plotted(report: UsageResponse, key: str) -> pd.DataFrame:
    return pd.DataFrame(
        [(getattr(row, key), row.predict_time) for row in report.rows], columns=[key, "seconds"]
    )


def render_totals(report: UsageResponse) -> Markup:
    total = report.total
    share = total.cold_starts / total.predictions if total.predictions else 0.0
    return markup.tiles(
        {
            "predictions": f"{total.predictions:,}",
            "running": markup.duration(total.predict_time),
            "cost": markup.money(total.cost, report.currency) or "no prices",
            "tokens in": f"{total.input_tokens:,}",
            "tokens out": f"{total.output_tokens:,}",
            "waited for a load": f"{100 * share:.0f} %",
        }
    )


def render(report: UsageResponse) -> Markup:
    keys = report.by
    headings = [
        *(_KEYS[key] for key in keys),
        "Predictions", "Failed", "Seconds", "Cost", "Tokens in", "Tokens out", "Cold starts",
    ]  # fmt: skip
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
    return markup.section("Rows of the CSV", markup.table(headings, rows, if_empty=_EMPTY))


def _named(row: UsageRow, key: str) -> str:
    named = row.token_name if key == "token" else None
    return str(named or getattr(row, key) or "unknown")
