"""`appliance backup` and `appliance restore`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, config_path, home_folder, load_config
from appliance.cli.tokens import with_store_of
from appliance.domain.errors import ApplianceError
from appliance.domain.units import readable_bytes
from appliance.driver import permissions

if TYPE_CHECKING:
    from rich.progress import Progress


def backup(
    file: Annotated[Path, typer.Argument(help="New file for the backup, such as appliance.tar.gz.")],
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Save the database, files, trained and pushed versions, keys and config in one file.

    The appliance may run meanwhile. Downloaded weights, caches and logs are not saved. The file contains
    secrets; only this user can read it.
    """
    from appliance import config as configuration
    from appliance.config import variables
    from appliance.driver import backup as backups

    checked = load_config(config)
    if checked.store.url is not None:
        raise ApplianceError(
            "`appliance backup` cannot save a database on PostgreSQL (store.url): save the database with "
            "pg_dump, then the folders `files` and `cog` of the data folder; the page PostgreSQL of the "
            "manual has the commands"
        )
    folder = home_folder(home, checked)
    runtime = configuration.runtime.read(folder / "run", checked).model_dump(mode="json")
    files = {
        configuration.CONFIG_FILE: config_path(config).read_bytes(),
        "runtime-config.json": json.dumps(variables.escape(runtime), indent=2).encode(),
    }
    for included in configuration.includes.files(config_path(config)):
        files[f"{configuration.includes.FOLDER}/{included.name}"] = included.read_bytes()
    permissions.restrict()
    with _progress() as progress:
        saved = backups.create(folder, file.absolute(), files, progress)
    _record(folder, "backup.create", file)
    for lost in saved.lost:
        typer.secho(f"not saved, because it is missing on the disk: {folder / lost}", fg="yellow", err=True)
    if saved.in_bucket:
        url = "a bucket" if checked.files.s3 is None else checked.files.s3.url
        typer.secho(f"not saved, because they are in {url}: {saved.in_bucket} files", fg="yellow", err=True)
    typer.echo(f"{file}: {saved.manifest.members} files, {readable_bytes(saved.size)}")


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `appliance backup` has written.")],
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Empty or new data folder. Default: APPLIANCE_HOME, else server.data."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Create a data folder from a backup. All files are checked before the data folder is filled.

    The saved models.yaml is put into the folder `config` of the data folder.
    """
    from appliance import config as configuration
    from appliance.driver import restore as restoring

    folder = home_folder(home, load_config(config)) if home is None else home.expanduser().absolute()
    permissions.restrict()
    with _progress() as progress:
        manifest = restoring.restore(file.absolute(), folder, progress)
    _record(folder, "backup.restore", file)
    typer.echo(
        f"{folder}: restored {manifest.members} files, saved at {manifest.created_at} by appliance "
        f"{manifest.appliance}"
    )
    saved = folder / "config" / configuration.CONFIG_FILE
    if saved.exists():
        start = ["appliance", "serve", "--home", str(folder), "--config", str(saved)]
        typer.echo(f"start it with: {shlex.join(start)}")


def _record(folder: Path, action: str, file: Path) -> None:
    """Record what is done already; so a failure is only printed."""
    event = command(action, str(file.absolute()))
    try:
        with_store_of(folder, lambda store: store.audit.record(event))
    except (ApplianceError, OSError) as error:
        typer.secho(f"not recorded in the audit log: {error}", fg="yellow", err=True)


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
