"""Commands that need no running appliance: check, pull, schema, certificate, doctor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.cli.options import (
    ConfigOption,
    HomeOption,
    JsonOption,
    home_folder,
    load_config,
    port,
    print_json,
)
from appliance.domain.errors import ApplianceError, ConfigError, WeightsError
from appliance.domain.units import readable_bytes
from appliance.driver import permissions

if TYPE_CHECKING:
    from rich.console import Console

    from appliance.config import Config, ModelConfig
    from appliance.driver.doctor import CheckResult
    from appliance.gateway.catalogue.servable import Servable
    from appliance.scheduler import Scheduler


def check(
    config: ConfigOption = None,
    home: HomeOption = None,
    account: Annotated[
        str | None, typer.Option("--as", help="Show instead what this account may do, why, and its limits.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check models.yaml, and show on which devices each model fits, or why it fits on none.

    A model's memory is the size in models.yaml, else the size measured when the model ran, else an estimate.
    Estimates do not include weights that are not downloaded yet.
    """
    from appliance.driver.standby import files_warning

    checked = load_config(config)
    if checked.cluster is not None:
        from appliance.driver import cluster_head

        cluster_head.own_address(checked.cluster)  # an error if it is not an address of this machine
    if account is not None:
        groups = asyncio.run(_claimed_groups(checked, home_folder(home, checked), account))
        rights = _rights(checked, account, groups)
        if as_json:
            print_json(rights)
        else:
            _show_rights(rights)
        return
    report = asyncio.run(_placement_report(checked, home_folder(home, checked)))
    if as_json:
        print_json(report)
    else:
        _show_placement(report)
    warning = files_warning(checked, home_folder(home, checked))
    if warning is not None:
        typer.echo(f"warning: {warning}", err=True)
    if any(model["fits"] is False for model in report["models"]):
        raise typer.Exit(1)


async def _claimed_groups(config: Config, home: Path, account: str) -> frozenset[str]:
    """Return the groups that the identity provider named at the last sign-in of the account's user."""
    from appliance.store import Store

    database = home / "appliance.db"
    if config.sign_on.oidc is None or not (config.store.url or database.exists()):
        return frozenset()
    store = Store(database, url=config.store.url)
    await store.open()
    try:
        user = await store.users.find(account)
    finally:
        await store.close()
    return frozenset() if user is None else config.sign_on.groups_of(user)


def _rights(config: Config, account: str, claimed: frozenset[str]) -> dict[str, Any]:
    """Return the models and rights of an account, each with the groups that give it, and its limits.

    ``claimed`` are groups that the identity provider named.
    """
    from appliance.domain.access import Right, matches
    from appliance.domain.budget_rules import of_account

    policy = config.access_policy
    policy.set_provider_groups(account, claimed)
    found = policy.of(account)
    groups = policy.groups_of(account)
    everything = ["all accounts"] if config.access is None else ["server.account"]
    names = [model.name for model in config.models]
    if policy.unlimited(account):
        models, rights = dict.fromkeys(names, everything), dict.fromkeys(map(str, Right), everything)
    else:
        models = {
            name: [group.name for group in groups if matches(name, group.models)]
            for name in names
            if found.allows(name)
        }
        rights = {
            str(right): [group.name for group in groups if right in group.rights]
            for right in Right
            if right in found.rights
        }
    denied = [name for name in names if name not in models]
    limits = [
        {key: value for key, value in msgspec.structs.asdict(budget).items() if value is not None}
        for budget in of_account(config.budgets, policy, account)
    ]
    return {
        "account": account,
        "rights": rights,
        "models": models,
        "denied": denied,
        "priority": policy.priority(account),
        "limits": limits,
    }


def _show_rights(found: dict[str, Any]) -> None:
    from appliance.domain.budget_rules import PERIOD_AMOUNTS, SUBJECT_KEYS

    for title in ("rights", "models"):
        typer.echo(f"{title} of the account {found['account']}:" if found[title] else f"{title}: none")
        for name, groups in found[title].items():
            typer.echo(f"  {name}  (from {', '.join(groups)})")
    if found["denied"]:
        typer.echo(f"denied models: {', '.join(found['denied'])}")
    typer.echo(f"priority: {found['priority']}")
    typer.echo("limits:" if found["limits"] else "limits: none")
    for limit in found["limits"]:
        subject = ", ".join(f"{key} {limit[key]}" for key in SUBJECT_KEYS if key in limit)
        amounts = [f"{limit[key]:g} {key}" for key in PERIOD_AMOUNTS if key in limit]
        each = f"per {limit['period']}: {', '.join(amounts)}" if amounts else ""
        most = f"{limit['concurrent']} unfinished predictions" if "concurrent" in limit else ""
        typer.echo(f"  {subject}  ({'; '.join(filter(None, (each, most))) or 'no limit'})")


async def _placement_report(config: Config, home: Path) -> dict[str, Any]:
    from appliance import machine
    from appliance.gateway.catalogue import demands as placement
    from appliance.gateway.catalogue.servable import servable
    from appliance.machine.gpus import Gpus
    from appliance.machine.hardware import hardware, head_only, runs_nowhere
    from appliance.machine.memory_use import device_usage
    from appliance.scheduler import Scheduler

    devices = machine.discover(config.hardware)
    placed_on = hardware(devices, config.cluster)
    used = device_usage(devices, Gpus.connect() if devices and placed_on.kind == "cuda" else None)
    present = {model.name: _present(home, model) for model in config.models}
    absent = [
        model for model in config.models if not present[model.name] and runs_nowhere(model, placed_on) is None
    ]
    here = tuple(model for model in config.models if model not in absent)
    found = servable(config.model_copy(update={"models": here}), home, placed_on, 0.0)
    demands = list(found.demands)
    # The demand of a model without weights on disk is an estimate.
    demands += [placement.demand(model, home, placed_on) for model in absent]
    # Only this machine is known here, so of a model on several machines one part has to fit.
    parts = [msgspec.structs.replace(each, machines=1) for each in demands]
    scheduler = Scheduler(placement.capacities(devices), parts)
    for name, peak in (await _measured(found, home, config.store.url, placed_on.kind)).items():
        if scheduler.knows(name):
            scheduler.footprints.restore_peak(name, peak)
    if placed_on.runs_models:
        _place_pinned(scheduler)
    models = [
        _left_out(model, found.left_out[model.name])
        if model.name in found.left_out
        else _placed(model, scheduler, present=present[model.name], runs_models=placed_on.runs_models)
        for model in config.models
    ]
    for model, row in zip(config.models, models, strict=True):
        row["environment"] = _environment(model, home)
        row["head_only"] = None if config.cluster is None else head_only(model)
        row["built"] = _built(model, home)
    shown = [
        {
            "name": device.name,
            "memory": device.memory,
            "used": used.get(device.name),
            "label": device.label,
        }
        for device in devices
    ]
    return {"runs_models": placed_on.runs_models, "devices": shown, "models": models}


def _present(home: Path, model: ModelConfig) -> bool:
    from appliance import weights

    try:
        return weights.is_prepared(home, model)
    except WeightsError:  # reported later, together with other unreadable models
        return True


def _placed(model: ModelConfig, scheduler: Scheduler, *, present: bool, runs_models: bool) -> dict[str, Any]:
    """Report where a model fits. If this machine runs no models, ``fits`` is None, which means not known."""
    known = scheduler.footprints.of(model.name)
    wanted = known.demand
    return {
        "name": model.name,
        "kind": model.kind,
        "memory": wanted.memory,
        "share": wanted.share,
        "devices": wanted.devices,
        "machines": model.machines,
        "from": wanted.origin.value,
        "peak": known.peak,
        "fits": known.fits if runs_models else None,
        "fits_on": list(known.devices),
        "problem": known.problem if runs_models else None,
        "weights_present": present,
    }


def _environment(model: ModelConfig, home: Path) -> list[str] | None:
    """Return the packages that differ in the model's environment; None if it has none, or is not built."""
    from appliance import weights
    from appliance.builds import environments

    if model.environment is None or not weights.is_prepared(home, model):
        return None
    return [str(change) for change in environments.changes(home, model)]


def _built(model: ModelConfig, home: Path) -> str | None:
    """Return why a Cog project is built as an image; None if it is not."""
    from appliance.builds import project_image
    from appliance.config import CogModel

    return project_image.reason(home, model) if isinstance(model, CogModel) else None


def _left_out(model: ModelConfig, why: str) -> dict[str, Any]:
    """Return the report, in the form of ``_placed``, for a model that cannot be served."""
    nothing = dict.fromkeys(("memory", "share", "devices", "from", "peak"))
    place = {"fits": False, "fits_on": [], "problem": why, "weights_present": True}
    return {"name": model.name, "kind": model.kind, "machines": model.machines, **nothing, **place}


def _place_pinned(scheduler: Scheduler) -> None:
    """Place pinned and preloaded models first, because other models must fit beside them."""
    from appliance.scheduler import Load

    for now in range(len(scheduler.models)):
        for decision in scheduler.decide(float(now)):
            if isinstance(decision, Load):
                scheduler.loaded(decision.model, float(now), ())


async def _measured(found: Servable, home: Path, url: str | None, device: str) -> dict[str, int]:
    from appliance.gateway.catalogue.catalogue import Catalogue
    from appliance.store import Store

    database = home / "appliance.db"
    if url is None and not database.exists():
        return {}
    store = Store(database, url=url)
    await store.open()
    try:
        rows = await store.memory_profiles.all()
    finally:
        await store.close()
    peaks = {row.loaded: row.peak for row in rows if row.device == device}
    built = Catalogue([card for card, _ in found.described], [entry for _, entry in found.described], ())
    keys = {entry.runs_on: built.loads_as(entry) for entry in built.entries}
    return {name: peaks[key] for name, key in keys.items() if key in peaks}


def _show_devices(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    if not report["runs_models"]:
        console.print(
            "this machine runs no models (hardware.devices: none), and only the running appliance knows the "
            "nodes: `appliance status` shows which models fit on none of them",
            soft_wrap=True,
        )
        return
    devices = Table("device", "memory", "in use now", "description", box=None)
    for device in report["devices"]:
        used = "unknown" if device["used"] is None else readable_bytes(device["used"])
        devices.add_row(device["name"], readable_bytes(device["memory"]), used, device["label"])
    console.print(devices)


def _fits_on(model: dict[str, Any]) -> str:
    from rich.markup import escape

    if model["fits"] is None:
        return "not known"
    return ", ".join(model["fits_on"]) if model["fits"] else f"[red]no device: {escape(model['problem'])}[/]"


def _show_placement(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    _show_devices(console, report)
    models = Table("model", "kind", "needs", "source", "fits on", "weights", box=None)
    for model in report["models"]:
        if model["from"] is None:
            models.add_row(model["name"], model["kind"], "", "unknown", "[red]not served[/]", "present")
            continue
        share = f"{model['share']:g} of a device" if model["share"] is not None else ""
        needs = readable_bytes(model["memory"]) if model["memory"] is not None else share
        many = f" x {model['devices']}" if model["devices"] > 1 else ""
        many += f" on each of {model['machines']} machines" if model["machines"] > 1 else ""
        peak = f", took {readable_bytes(model['peak'])}" if model["peak"] is not None else ""
        weights = "present" if model["weights_present"] else "not downloaded"
        models.add_row(
            model["name"], model["kind"], needs + many, model["from"] + peak, _fits_on(model), weights
        )
    console.print()
    console.print(models)
    for model in report["models"]:
        if model["environment"] is not None:
            changed = ", ".join(model["environment"]) or "the packages of the appliance"
            console.print(f"environment of {model['name']}: {changed}", markup=False, soft_wrap=True)
        if model["head_only"] is not None:
            reason = f"{model['name']} runs on the head of the cluster only: {model['head_only']}"
            console.print(reason, markup=False, soft_wrap=True)
        if model["built"] is not None:
            text = f"{model['name']} is built as an image, because {model['built']}"
            console.print(text, markup=False, soft_wrap=True)
        if model["from"] is None:
            message = f"{model['name']} is not served: {model['problem']}"
            console.print(message, style="red", markup=False, soft_wrap=True)


def pull(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names of the models. Default: all models.")
    ] = None,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Download the weights of models to the data folder, and build Cog projects and environments.

    Skips what is there already. Without names, also skips models that no machine of the cluster can run.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from appliance import weights
    from appliance.machine.hardware import head_only
    from appliance.runners.adapters import with_downloads

    checked = load_config(config)
    chosen = _chosen(checked, models or [])
    if not models and checked.hardware.devices == "none":
        chosen = [model for model in chosen if head_only(model) is None]
    permissions.restrict()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    failed = []
    with Progress(TextColumn("{task.description}"), *columns) as progress:
        for model in with_downloads(chosen):
            try:
                weights.prepare(home_folder(home, checked), model, progress)
            except WeightsError as error:
                failed.append(f"{model.name}: {error.detail}")
    if failed:
        raise ApplianceError("; ".join(failed))


def _chosen(config: Config, names: list[str]) -> list[ModelConfig]:
    by_name = {name: model for model in config.models for name in (model.name, *model.aliases)}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        known = ", ".join(model.name for model in config.models)
        raise ConfigError(f"models.yaml has no model {unknown[0]}: choose among {known}")
    chosen = {by_name[name].name for name in names or by_name}  # models are not hashable
    return [model for model in config.models if model.name in chosen]


def certificate(
    folder: Annotated[Path, typer.Argument(help="Folder for certificate.pem and key.pem.")] = Path(),
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="Host name or IP address that clients use, in addition to loopback. May be repeated.",
        ),
    ] = None,
) -> None:
    """Create a self-signed certificate to try HTTPS, and print the key `tls` for models.yaml.

    Clients trust the certificate if SSL_CERT_FILE (Python) or NODE_EXTRA_CA_CERTS (Node.js) is its path.
    """
    from appliance.driver import certificate as certificates

    created, key = certificates.write(folder, names or [])
    typer.echo(f"tls: {{certificate: {created}, key: {key}}}")
    typer.echo(f"clients trust it with SSL_CERT_FILE={created} or NODE_EXTRA_CA_CERTS={created}", err=True)


def schema() -> None:
    """Print the JSON Schema of models.yaml, for editors."""
    from appliance import config

    print_json(config.json_schema())


def doctor(
    config: ConfigOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Correct permissions, end leftover worker processes, delete folders of interrupted backups "
            "and builds, and delete stored files that the database does not refer to.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --fix: do not ask before deleting.")] = False,
) -> None:
    """Find problems that would slow the appliance down or stop it, and print how to fix them.

    The exit code is 1 if there is an error, and 0 if there are only warnings.
    """
    from appliance.driver import doctor as examination

    checked = load_config(config)
    folder = home_folder(home, checked)
    findings = examination.examine(checked, folder, port(None, checked))
    if fix:
        for finding in findings:
            _repair(finding, folder, ask=not yes)
        findings = examination.examine(checked, folder, port(None, checked))
    if as_json:
        print_json(msgspec.to_builtins(findings))
    else:
        colours = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "failed": typer.colors.RED}
        for finding in findings:
            typer.secho(f"{finding.state:8}", fg=colours[finding.state], nl=False)
            typer.echo(f"{finding.subject}: {finding.found}")
            if finding.fix:
                typer.echo(f"        -> {finding.fix}")
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


def _repair(finding: CheckResult, home: Path, *, ask: bool) -> None:
    """Repair what can be repaired safely, and say on standard error what was done."""
    from appliance.driver.doctor import REPAIRS

    if finding.repair is None:
        return
    action, deletes = REPAIRS[finding.repair]
    if deletes and ask and not typer.confirm(f"{finding.found}: delete them?", err=True):
        return
    try:
        typer.echo(f"fixed: {action(home)}", err=True)
    except ApplianceError as error:  # an appliance has been started since the examination
        typer.echo(f"not fixed: {error}", err=True)
