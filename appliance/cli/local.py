"""Commands that need no running appliance: check, pull, schema, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.options import ConfigOption, HomeOption, JsonOption, home_folder, load_config, port
from appliance.errors import ApplianceError, ConfigError, NeverFits, WeightsError

if TYPE_CHECKING:
    from appliance.config import Config, ModelConfig


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(check)
    app.command()(pull)
    app.command()(schema)
    app.command()(certificate)
    app.command()(doctor)


def check(config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check models.yaml, and show which model fits where.

    A size is exact where models.yaml says it or the weights are here, else an estimate without weights.
    """
    checked = load_config(config)
    report = _placement_report(checked, home_folder(home, checked))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show_placement(report)
    if any(not model["fits"] for model in report["models"]):
        raise typer.Exit(1)


def _placement_report(config: Config, home: Path) -> dict[str, Any]:
    from appliance import hardware, placement, weights
    from appliance.scheduler import Capacity
    from appliance.weights import pipeline

    devices = hardware.discover(config.hardware)
    scheduler = placement.build_scheduler(config, home, devices)
    models = []
    for model in config.models:
        wanted = placement.demand(pipeline.described(home, model) or model, home, devices[0].kind)
        sizes = [Capacity(device.name, device.memory) for device in devices]
        fits_on = [size.device for size in sizes if wanted.bytes_on(size) <= size.memory]
        try:
            scheduler.check_fits(model.name)
            problem = None
        except NeverFits as error:
            problem = error.detail
        models.append(
            {
                "name": model.name,
                "kind": model.kind,
                "memory": wanted.memory,
                "share": wanted.share,
                "devices": wanted.devices,
                "fits": problem is None,
                "fits_on": fits_on,
                "problem": problem,
                "weights_present": model.source is None or weights.present(home, model),
            }
        )
    known = [{"name": device.name, "memory": device.memory, "label": device.label} for device in devices]
    return {"devices": known, "models": models}


def _show_placement(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    devices = Table("device", "memory", "what it is", box=None)
    for device in report["devices"]:
        devices.add_row(device["name"], size(device["memory"]), device["label"])
    console.print(devices)
    models = Table("model", "kind", "needs", "fits on", "weights", box=None)
    for model in report["models"]:
        share = f"{model['share']:g} of a device" if model["share"] is not None else ""
        needs = size(model["memory"]) if model["memory"] is not None else share
        many = f" x {model['devices']}" if model["devices"] > 1 else ""
        weights = "here" if model["weights_present"] else "not fetched yet"
        fits = ", ".join(model["fits_on"]) if model["fits"] else f"[red]nowhere: {model['problem']}[/]"
        models.add_row(model["name"], model["kind"], needs + many, fits, weights)
    console.print()
    console.print(models)


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit in {"B", "KiB", "MiB"} else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def pull(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to fetch, by name. Default: all of them.")
    ] = None,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Fetch weights into the data folder; what is there already is not fetched again."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from appliance import weights

    checked = load_config(config)
    chosen = _chosen(checked, models or [])
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    failed = []
    with Progress(TextColumn("{task.description}"), *columns) as progress:
        for model in chosen:
            try:
                weights.pull(home_folder(home, checked), model, progress)
            except WeightsError as error:
                failed.append(f"{model.name}: {error.detail}")
    if failed:
        raise ApplianceError("; ".join(failed))


def _chosen(config: Config, names: list[str]) -> list[ModelConfig]:
    by_name = {name: model for model in config.models for name in (model.name, *model.aliases)}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        known = ", ".join(model.name for model in config.models)
        raise ConfigError(f"models.yaml has no model {unknown[0]}; it has {known}")
    chosen = [by_name[name] for name in names] or list(config.models)
    return [model for model in dict.fromkeys(chosen) if model.source is not None]


def certificate(
    folder: Annotated[Path, typer.Argument(help="Where to put certificate.pem and key.pem.")] = Path(),
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="Name or address that clients use; loopback is always in it. May be repeated."
        ),
    ] = None,
) -> None:
    """Make a certificate of your own, for trying HTTPS: server.tls in models.yaml takes the two files.

    Clients must be told to trust it: SSL_CERT_FILE for Python, NODE_EXTRA_CA_CERTS for Node.js.
    """
    from appliance import certificate as certificates

    made, key = certificates.write(folder, names or [])
    typer.echo(f"tls: {{certificate: {made}, key: {key}}}")
    typer.echo(f"clients trust it with SSL_CERT_FILE={made} or NODE_EXTRA_CA_CERTS={made}", err=True)


def schema() -> None:
    """Print the JSON Schema of models.yaml, for editors."""
    from appliance import config

    typer.echo(json.dumps(config.json_schema(), indent=2))


def doctor(
    config: ConfigOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what slows the appliance down or stops it, and say how to mend each.

    Exit code 1 when something must be mended; warnings alone leave it 0.
    """
    from appliance import doctor as examination

    checked = load_config(config)
    findings = examination.examine(checked, home_folder(home, checked), port(None, checked))
    if as_json:
        typer.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        colours = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "failed": typer.colors.RED}
        for finding in findings:
            typer.secho(f"{finding.state:8}", fg=colours[finding.state], nl=False)
            typer.echo(f"{finding.subject}: {finding.found}")
            if finding.fix:
                typer.echo(f"        -> {finding.fix}")
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)
