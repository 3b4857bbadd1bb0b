"""`appliance monitoring`: prints the files for Prometheus and Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

_FOLDER: Final = Path(__file__).parents[1] / "assets" / "monitoring"

group = typer.Typer(
    help="Print the alert rules for Prometheus and the dashboard for Grafana.", no_args_is_help=True
)


@group.command()
def alerts() -> None:
    """Print the alert rules. Save them as a file, and name the file in `rule_files` of prometheus.yml."""
    typer.echo((_FOLDER / "alerts.yml").read_text(encoding="utf-8"), nl=False)


@group.command()
def dashboard() -> None:
    """Print the dashboard as JSON. Grafana imports it, or loads it from a folder with dashboards."""
    typer.echo((_FOLDER / "dashboard.json").read_text(encoding="utf-8"), nl=False)
