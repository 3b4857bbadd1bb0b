"""Files that record the models being added, so that they are added even if the gateway restarts meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from appliance.config import ModelConfig
from appliance.domain.errors import ApplianceError
from appliance.runners import model_configs

_log = logging.getLogger(__name__)

_FOLDER: Final = "additions"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose weights are downloaded, and which is then written to models.yaml."""

    id: str
    action: Literal["add", "update"]
    entry: dict[str, Any]  # of the model in models.yaml, once it is written
    force: bool  # whether the entry stays although the model cannot be served
    created_at: float  # Unix seconds
    old_revision: str | None = None  # of the model before an update
    applying: bool = False  # whether the entry may have been written to models.yaml already

    @property
    def model(self) -> str:
        return str(self.entry["name"])

    def config(self) -> ModelConfig:
        return model_configs()[self.entry["kind"]].model_validate(self.entry)


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Wait until no other thread or process starts an addition or deletes weights in the data folder.

    So weights are either deleted before an addition looks for them, or kept because of it.

    Raises:
        ApplianceError: the folder of the files cannot be created.
    """
    folder = home / _FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ApplianceError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel frees the lock of a dead process
        yield
    finally:
        os.close(descriptor)


def write(home: Path, pending: Pending) -> None:
    """Write the file of ``pending`` in the data folder ``home``, once no weights are being deleted.

    Raises:
        ApplianceError: it cannot be written.
    """
    file = _file(home, pending.id)
    with locked(home):
        try:
            fresh = file.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(pending))
            fresh.rename(file)
        except OSError as error:
            raise ApplianceError(f"{error.filename or file} cannot be written: {error.strerror}") from error


def forget(home: Path, id: str) -> None:
    """Remove the file of a model that is added, failed or cancelled."""
    try:
        _file(home, id).unlink(missing_ok=True)
    except OSError as error:
        _log.error("%s cannot be removed: %s", _file(home, id), error.strerror)


def read_all(home: Path) -> list[Pending]:
    """Return the models being added, oldest first. Files that cannot be read are logged."""
    found = []
    for file in sorted((home / _FOLDER).glob("*.json")):
        try:
            pending = msgspec.json.decode(file.read_bytes(), type=Pending)
            pending.config()
        except FileNotFoundError:  # the model was added meanwhile
            continue
        except (OSError, ValueError, LookupError, msgspec.MsgspecError) as error:
            _log.error("%s cannot be read, and its model is not added: %s: delete the file", file, error)
            continue
        found.append(pending)
    return sorted(found, key=lambda each: each.created_at)


def _file(home: Path, id: str) -> Path:
    return home / _FOLDER / f"{id}.json"
