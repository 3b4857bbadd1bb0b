"""`appliance usage`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import typer

from appliance.cli.options import JsonOption, print_json
from appliance.cli.remote import UrlOption, connected

if TYPE_CHECKING:
    from rich.console import Console

    from appliance.protocols.admin_types import UsageRow
    from appliance.protocols.limit_types import LimitsResponse

#: Limited amount -> its unit, if that differs; the unit of cost is the currency.
_UNITS: Final = {"cost": "", "concurrent": "unfinished"}
#: State of a limit -> style of its line.
_STYLES: Final = {"ok": "", "warning": "yellow", "spent": "red"}


def usage(
    first: Annotated[
        str | None, typer.Option("--from", help="First day, in UTC. Default: 29 days before the last day.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day. Default: today.")] = None,
    by: Annotated[
        str, typer.Option(help="Columns to group by: any of day,model,work,owner,token,hardware.")
    ] = "model",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how long predictions ran, their cost at the prices in models.yaml, and what is left of limits.

    Example: appliance usage --from 2026-01-01 --to 2026-01-31 --by day,model
    """
    given = {"from": first, "to": last, "by": by}
    query = urlencode({key: value for key, value in given.items() if value is not None})
    client = connected(url)
    if as_csv:
        typer.echo(client.text(f"/admin/usage.csv?{query}"), nl=False)
        return
    if as_json:
        print_json(client.get(f"/admin/usage?{query}"))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from appliance.protocols.admin_types import UsageResponse
    from appliance.protocols.limit_types import LimitsResponse

    found = client.get_as(UsageResponse, f"/admin/usage?{query}")

    currency = found.currency
    amounts = [
        "predictions",
        "seconds",
        "cold start",
        "tokens in",
        "tokens out",
        *([currency] if currency else []),
    ]
    table = Table(box=None)
    for key in found.by:
        table.add_column(key)
    for amount in amounts:
        table.add_column(amount, justify="right")
    for row in found.rows:
        table.add_row(*(escape(_key(row, key)) for key in found.by), *_amounts(row, currency))
    if found.by and len(found.rows) > 1:
        names = ["total", *[""] * (len(found.by) - 1)]
        table.add_row(*names, *_amounts(found.total, currency), style="bold")
    console = Console()
    console.print(f"{found.first} to {found.last}, days in UTC", highlight=False)
    console.print(table if found.rows else "no predictions in this period")
    _show_limits(console, client.get_as(LimitsResponse, "/admin/limits"))
    if currency and found.total.unpriced_time:
        unpriced = found.total.unpriced_time
        console.print(f"not in the cost: {unpriced:.6f} s on hardware without a price", highlight=False)


def _show_limits(console: Console, found: LimitsResponse) -> None:
    """Print what is left of the limits in models.yaml, if there are any."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("limit of", "limit", "used", "left", "resets at", box=None)
    for budget in found.budgets:
        token = budget.token_name or budget.token
        named = {"account": budget.account, "group": budget.group, "token": token, "model": budget.model}
        subject = ", ".join(f"{key} {value}" for key, value in named.items() if value is not None)
        for amount in budget.amounts:
            numbers = (f"{each:.6f}".rstrip("0").rstrip(".") for each in (amount.used, amount.left))
            unit = _UNITS.get(amount.name, amount.name) or found.currency or ""
            lasting = amount.name == "concurrent"
            limit = f"{amount.limit:g} {unit}" + ("" if lasting else f" per {budget.per}")
            at = "-" if lasting else f"{budget.resets_at[:16].replace('T', ' ')} UTC"
            table.add_row(escape(subject), limit, *numbers, at, style=_STYLES[amount.state])
    if table.row_count:
        console.print()
        console.print(table)


def _key(row: UsageRow, key: str) -> str:
    if key == "token":
        return str(row.token_name or row.token or "-")
    return str(getattr(row, key) or "-")


def _amounts(row: UsageRow, currency: str | None) -> list[str]:
    cost = "-" if row.cost is None else f"{row.cost:.6f}"
    return [
        str(row.predictions),
        f"{row.predict_time:.6f}",
        f"{row.cold_start:.6f}",
        str(row.input_tokens),
        str(row.output_tokens),
        *([cost] if currency else []),
    ]
