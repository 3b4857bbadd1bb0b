"""`appliance export` and `appliance import`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, load_config
from appliance.cli.remote import UrlOption, appliance_url
from appliance.cli.tokens import with_store
from appliance.domain.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.driver.transfer import Imported
    from appliance.store import Store


def export(
    file: Annotated[Path, typer.Argument(help="New file, such as predictions.jsonl.")],
    url: UrlOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Write all finished predictions to a file, one JSON object a line, in the form of the API.

    The appliance may run meanwhile. Output files are not included, only their URLs. Trainings are not
    exported.
    """
    from appliance.driver import transfer

    base = appliance_url(url).url.rstrip("/").removesuffix("/v1")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ApplianceError(f"{file} exists already: choose another name, or remove it") from error
    except OSError as error:
        raise ApplianceError(f"{file} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as out:

            async def write(store: Store) -> tuple[int, int]:
                counts = await transfer.export(store, out, base)
                await store.audit.record(command("predictions.export", str(file), {"predictions": counts[0]}))
                return counts

            written, unfinished = with_store(config, home, write)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ApplianceError(f"{file} cannot be written: {error.strerror}") from error
        raise
    left = f"; {unfinished} unfinished predictions were left out" if unfinished else ""
    typer.echo(f"{file}: {written} predictions{left}")


def import_(
    file: Annotated[Path, typer.Argument(help="A file that `appliance export` has written.")],
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Add the predictions of an exported file, with their ids.

    Predictions already in the database are skipped. All lines are checked before any is stored. The
    appliance may run meanwhile. Imported predictions count in `appliance usage` on the day on which they
    ended.
    """
    from appliance.driver import transfer

    account = load_config(config).server.account
    transfer.check(file)

    async def load(store: Store) -> Imported:
        found = await transfer.load(store, file, account)
        await store.audit.record(command("predictions.import", str(file), {"predictions": found.added}))
        return found

    imported = with_store(config, home, load)
    typer.echo(f"{imported.added} predictions imported, {imported.present} skipped, already in the database")
