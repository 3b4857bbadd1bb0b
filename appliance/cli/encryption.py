"""`appliance encryption`: encrypt stored data, and replace the operator's key. The appliance must not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, JsonOption, home_folder, load_config, print_json
from appliance.cli.tokens import with_store_of
from appliance.domain.errors import ApplianceError

group = typer.Typer(no_args_is_help=True, help="Encrypt the database, and replace the operator's key.")

#: Environment variables with the new key, and with the path of a file that has it.
NEW: Final = "APPLIANCE_NEW_ENCRYPTION_KEY"
NEW_FILE: Final = "APPLIANCE_NEW_ENCRYPTION_KEY_FILE"


@group.command()
def enable(config: ConfigOption = None, home: HomeOption = None) -> None:
    """Encrypt the database and stored files with the key in APPLIANCE_ENCRYPTION_KEY.

    APPLIANCE_ENCRYPTION_KEY_FILE may name a file with the key instead. The disk needs space for a second copy
    of the database. If the command is interrupted, run it again.
    """
    from appliance.gateway.files.encrypted_file import FileCipher
    from appliance.store import encryption, snapshot

    checked = load_config(config)
    if checked.store.url is not None:
        raise ApplianceError(
            "the appliance does not encrypt a database on PostgreSQL (store.url): encrypt the disk of the "
            f"server; new files are encrypted from the next start on if {encryption.VARIABLE} is set"
        )
    folder = home_folder(home, checked)
    with _stopped(folder) as database:
        key = encryption.operator_key()
        if key is None:
            raise ApplianceError(
                f"there is no key: set {encryption.VARIABLE} or {encryption.FILE_VARIABLE}; "
                "`openssl rand -base64 32` makes one"
            )
        encryption.create(database, key)
        cipher = FileCipher(encryption.read(database))
        if not encryption.is_encrypted(database):
            encryption.encrypt(database)
        for reference in snapshot.references(database):
            if reference.path.startswith(("files/uploads/", "files/outputs/")):
                with suppress(FileNotFoundError):  # lost before
                    cipher.encrypt(folder / reference.path)
    with_store_of(folder, lambda store: store.audit.record(command("encryption.enable")))
    typer.echo(f"the database in {folder} is encrypted with the key {encryption.key_id(key)}")


@group.command()
def rotate(config: ConfigOption = None, home: HomeOption = None) -> None:
    """Replace the operator's key with the key in APPLIANCE_NEW_ENCRYPTION_KEY.

    APPLIANCE_NEW_ENCRYPTION_KEY_FILE may name a file with the new key instead.
    Only the data key is encrypted again, so this takes no time. Backups made before need the old key.
    """
    from appliance.store import encryption

    checked = load_config(config)
    folder = home_folder(home, checked)
    with _stopped(folder) as database:
        new = encryption.operator_key(NEW, NEW_FILE)
        if new is None:
            raise ApplianceError(f"there is no new key: set {NEW} or {NEW_FILE}")
        encryption.read(database)
        with_store_of(
            folder, lambda store: store.audit.record(command("encryption.rotate")), url=checked.store.url
        )
        id = encryption.rewrap(database, new)
    subject = f"the database in {folder} is" if checked.store.url is None else f"the files in {folder} are"
    typer.echo(f"{subject} now encrypted with the key {id}: use it from the next start on")


@group.command()
def status(config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show whether the database is encrypted, and the id of its key. Needs no key."""
    from appliance.store import encryption

    checked = load_config(config)
    database = home_folder(home, checked) / "appliance.db"
    key, encrypted = encryption.key_in_use(database), encryption.is_encrypted(database)
    if checked.store.url is not None:
        encrypted = False
    if as_json:
        print_json({"encrypted": encrypted, "key": key})
    elif encrypted and key is None:
        typer.echo(f"the database is encrypted, but {encryption.key_file(database)} is missing")
    elif encrypted:
        typer.echo(f"the database is encrypted with the key {key}")
    elif checked.store.url is not None:
        files = "are not encrypted" if key is None else f"are encrypted with the key {key}"
        typer.echo(f"the appliance does not encrypt the database on PostgreSQL; new files {files}")
    elif key is not None and database.exists():
        typer.echo("the database is not encrypted yet: run `appliance encryption enable` again")
    else:
        typer.echo("the database is not encrypted")


@contextmanager
def _stopped(folder: Path) -> Iterator[Path]:
    """Hold the lock of the data folder, and yield the path of the database.

    Raises:
        ApplianceError: an appliance uses the data folder.
    """
    from appliance.driver import home_lock, permissions

    permissions.restrict()
    with home_lock.take(folder):
        yield folder / "appliance.db"
