"""Commands that add models to models.yaml and remove them: search, add, remove, update, prune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from appliance.cli.options import ConfigOption, HomeOption, JsonOption, config_path, home_folder, print_json
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.domain.units import readable_bytes
from appliance.driver import permissions

if TYPE_CHECKING:
    from appliance.adding import AdditionPlan, DeviceUse
    from appliance.cli.client import Client
    from appliance.config import Config, ModelConfig
    from appliance.config.edit_file import Edited
    from appliance.machine.hardware import Hardware

_HUB_ROWS: Final = 20
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def search(
    word: Annotated[
        str, typer.Argument(help="Part of a name or task; a few wrong letters are allowed.")
    ] = "",
    on_hub: Annotated[bool, typer.Option("--hub", help="Search the Hugging Face hub instead.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search the catalogue of well-known open models, and show which fit on this machine."""
    from rich.console import Console
    from rich.table import Column, Table

    from appliance import adding

    if on_hub:
        _search_hub(word, as_json=as_json)
        return
    checked = _load(config_path(config))
    models = adding.catalogue(checked)
    found = adding.search(word, models) if word else list(models)
    if not found:
        tasks = ", ".join(dict.fromkeys(model.task for model in models))
        raise ApplianceError(
            f"the catalogue has no model like {word!r}: search for a task, one of {tasks}, or search the hub "
            "with --hub"
        )
    devices = _devices(checked, _running(checked))
    rows = [(model, adding.find_fit(model.memory, devices)) for model in found]
    if as_json:
        print_json(
            [{**model.model_dump(mode="json"), "fit": msgspec.to_builtins(fit)} for model, fit in rows]
        )
        return
    short = Column("short name", no_wrap=True)  # people type it
    table = Table(short, "task", "weights", "memory", "licence", "here", "tested", box=None)
    for model, fit in rows:
        sizes = readable_bytes(model.size), readable_bytes(model.memory)
        licence = model.licence + (", gated" if model.gated else "")
        here = fit.state if fit.state == "not known" else str(fit)
        table.add_row(model.short, model.task, *sizes, licence, here, "yes" if model.tested else "not yet")
    Console().print(table)


def _search_hub(word: str, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from appliance import adding

    found = adding.search_hub(word, _HUB_ROWS)
    if as_json:
        print_json([msgspec.to_builtins(each) for each in found])
        return
    if not found:
        raise ApplianceError(f"the hub has no model whose name contains {word!r}: search for another word")
    table = Table(Column("source", no_wrap=True), "task", "library", "licence", "downloads", box=None)
    for each in found:
        licence = (each.licence or "not stated") + (", gated" if each.gated else "")
        table.add_row(f"hub:{each.repository}", each.task, each.library, licence, f"{each.downloads:,}")
    Console().print(table)


def add(
    source: Annotated[
        str,
        typer.Argument(
            # Rich reads an unescaped bracket as markup
            help=r"Short name of the catalogue, hub:owner/name\[@revision], pypi:package==version/path, "
            r"git:URL\[@revision], or a folder."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="owner/name in the API. Default: from the source.")] = None,
    file: Annotated[
        str | None, typer.Option(help="GGUF file or voice to use, if the repository has several.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of the model, if its files do not show it.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of a model of the kind transformers, such as summarization.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Add the model although it does not fit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the model and the change of models.yaml.")
    ] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Add a model: look at its source, choose its kind, download it, and write it into models.yaml.

    A running appliance reloads models.yaml. Example: appliance add qwen2.5-0.5b
    """
    from appliance import adding
    from appliance.config.edit import add_entry
    from appliance.config.edit_file import check_writable, edit_file

    path = config_path(config)
    checked = _load(path)
    folder = home_folder(home, checked)
    permissions.restrict()
    proposal = adding.propose(
        source, folder, name, file, lambda: adding.catalogue(checked), kind=kind, task=task
    )
    running = _running(checked)
    plan = adding.plan(proposal, path, checked, _devices(checked, running), _hardware(checked))
    _show(plan)
    if dry_run:
        typer.echo(plan.edited.diff(path), nl=False)
        return
    plan.check(force=force)
    check_writable(path)
    if not yes:
        typer.confirm(f"Add it to {path}?", abort=True)
    model = plan.proposal.config()
    _pull(folder, model)
    edited = edit_file(path, lambda text: add_entry(text, plan.proposal.entry, str(path)))
    _reload(running, path, edited, f"added {model.name} to {path}")


def _show(plan: AdditionPlan) -> None:
    proposal = plan.proposal
    typer.echo(f"{proposal.name}: {proposal.about}: kind {proposal.entry['kind']}")
    typer.echo(
        f"weights   {readable_bytes(proposal.stored)}, {readable_bytes(proposal.download)} to download"
    )
    typer.echo(f"licence   {proposal.licence or 'not stated: read it at the source'}")
    if proposal.tested is False:
        typer.echo("note      this model of the catalogue has not been run with the appliance yet")
    if plan.memory is None:
        typer.echo("memory    unknown: set the key memory in models.yaml afterwards")
    else:
        typer.echo(f"memory    about {readable_bytes(plan.memory)}: {plan.fit}")


def remove(
    name: Annotated[str, typer.Argument(help="owner/name of a model in models.yaml.")],
    prune: Annotated[bool, typer.Option("--prune", help="Delete its weights too.")] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Remove a model from models.yaml. Its weights stay on the disk, unless --prune is given."""
    from appliance import adding
    from appliance.config.edit import remove_entry
    from appliance.config.edit_file import edit_file, preview

    path = config_path(config)
    folder = home_folder(home, _load(path))
    before = {each.path for each in adding.unused(folder, lambda: [_load(path)])}
    after = preview(path, lambda text: remove_entry(text, name, str(path))).config
    freed = [each for each in adding.unused(folder, lambda: [after]) if each.path not in before]
    for each in freed:
        typer.echo(f"{'deletes' if prune else 'keeps'} {each.path} ({readable_bytes(each.size)})")
    if not yes:
        typer.confirm(f"Remove {name} from {path}?", abort=True)
    edited = edit_file(path, lambda text: remove_entry(text, name, str(path)))
    _reload(_running(after), path, edited, f"removed {name} from {path}")
    if prune:
        adding.delete_unused(folder, lambda: [_load(path)], [each.path for each in freed])


def update(
    name: Annotated[str, typer.Argument(help="owner/name of a model in models.yaml.")],
    yes: YesOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Change a model to the newest revision of its repository. Its old weights stay on the disk."""
    from appliance import adding
    from appliance.config.edit import change_entry
    from appliance.config.edit_file import edit_file, preview

    path = config_path(config)
    checked = _load(path)
    model = _named(checked, name, path)
    revisions = adding.find_update(model)
    if revisions.old == revisions.new:
        typer.echo(f"{model.name} is at the newest revision, {revisions.old}")
        return
    typer.echo(f"{model.name}: {revisions.old} -> {revisions.new}")

    def edit(text: str) -> str:
        return change_entry(text, model.name, ("source", "revision"), revisions.new, str(path))

    after = preview(path, edit).config
    if not yes:
        typer.confirm(f"Update it in {path}?", abort=True)
    permissions.restrict()
    _pull(home_folder(home, checked), _named(after, model.name, path))
    edited = edit_file(path, edit)
    _reload(_running(after), path, edited, f"updated {model.name} in {path}")


def prune(yes: YesOption = False, config: ConfigOption = None, home: HomeOption = None) -> None:
    """Delete weights on the disk that no model of models.yaml, or of a running appliance, uses.

    If several config files share the data folder, weights that only the other files use are deleted too.
    """
    from appliance import adding
    from appliance import config as configuration

    path = config_path(config)
    folder = home_folder(home, _load(path))

    def configs() -> list[Config]:
        checked = _load(path)
        return [checked, configuration.runtime.read(folder / "run", checked)]

    found = adding.unused(folder, configs)
    if not found:
        typer.echo(f"there is nothing unused in {folder / 'weights'}")
        return
    for each in found:
        typer.echo(f"{readable_bytes(each.size):>10}  {each.path}")
    total = readable_bytes(sum(each.size for each in found))
    if not yes:
        typer.confirm(f"Delete these {len(found)} files and folders ({total})?", abort=True)
    deleted = adding.delete_unused(folder, configs, [each.path for each in found])
    typer.echo(f"freed {readable_bytes(sum(each.size for each in deleted))}")


def _load(path: Path) -> Config:
    from appliance import config

    return config.load(path)


def _named(config: Config, name: str, path: Path) -> ModelConfig:
    for model in config.models:
        if name in {model.name, *model.aliases}:
            return model
    known = ", ".join(model.name for model in config.models)
    raise ConfigError(f"has no model {name}: choose among {known}", file=str(path))


def _running(config: Config) -> tuple[Client, dict[str, Any]] | None:
    """Return the client and the status of the running appliance; None if none answers with this token."""
    from appliance.cli.remote import connected

    try:
        client = connected(None, config)
        return client, client.get("/admin/status")
    except ApplianceError:
        return None


def _devices(config: Config, running: tuple[Client, dict[str, Any]] | None) -> list[DeviceUse]:
    from appliance import adding

    return adding.uses_of_config(config) if running is None else adding.uses_of_status(running[1])


def _hardware(config: Config) -> Hardware:
    from appliance import machine
    from appliance.machine.hardware import hardware

    return hardware(machine.discover(config.hardware), config.cluster)


def _pull(home: Path, model: ModelConfig) -> None:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from appliance import weights
    from appliance.runners.adapters import with_downloads

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns) as progress:
        for each in with_downloads([model]):
            weights.prepare(home, each, progress)
    with weights.as_weights_errors(model.name):
        weights.complete_options(home, model)  # raises if the weights are not of this kind


def _reload(running: tuple[Client, dict[str, Any]] | None, path: Path, edited: Edited, change: str) -> None:
    """Reload the running appliance and print the ``change``; put models.yaml back if the reload fails."""
    from appliance.config import Report
    from appliance.config.edit_file import put_back

    if running is None:
        typer.echo(change)
        typer.echo(
            "models.yaml was not reloaded: start the appliance, or run `appliance reload` with an admin token"
        )
        return
    try:
        report = msgspec.convert(running[0].post("/admin/reload"), Report)
    except ApplianceError as error:
        place = "is as before" if put_back(path, edited) else "was edited meanwhile and keeps the change"
        raise ApplianceError(f"the appliance did not reload: {error.detail}: {path} {place}") from error
    typer.echo(change)
    typer.echo(str(report))
