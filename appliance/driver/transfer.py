"""`appliance export` and `appliance import`: predictions as lines of JSON, in the form of the API."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NamedTuple

import msgspec
from msgspec import Meta

from appliance.domain.errors import ApplianceError, StoreError
from appliance.domain.prediction import Prediction, Status, new_stream_token
from appliance.protocols import serializers
from appliance.store import Cursor, Store, imports

_BATCH: Final = 100  # predictions read or written at a time
_SHOWN: Final = 20  # bad lines named in an error

_Name = Annotated[str, Meta(pattern=r"^[^/\s]+/[^/\s]+\Z")]


class _Line(msgspec.Struct, kw_only=True):
    """The keys of a line that are imported; others, such as ``urls``, are ignored."""

    id: Annotated[str, Meta(pattern="^[a-z0-9]{26}\\Z")]
    model: _Name
    version: Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
    input: dict[str, Any]
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime
    owner: Annotated[str, Meta(min_length=1)] | None = None
    output: Any = None
    logs: str = ""
    error: str | None = None
    metrics: dict[str, Any] = {}
    source: str = "api"
    data_removed: bool = False
    deployment: str | None = None
    parent: str | None = None
    operation: str | None = None


class Imported(NamedTuple):
    """Counts of an import."""

    added: int
    present: int  # predictions that were in the database already


async def export(store: Store, file: BinaryIO, base: str) -> tuple[int, int]:
    """Write all predictions that have ended, newest first; return how many, and how many are unfinished.

    ``base`` is the URL of the appliance, for the URLs of output files. Trainings are left out.
    """
    written = unfinished = 0
    cursor = None
    while page := await store.list(None, cursor=cursor, limit=_BATCH):
        for record in page:
            if not record.status.terminal:
                unfinished += 1
                continue
            line = serializers.to_builtins(serializers.prediction(record, base), base)
            file.write(msgspec.json.encode({**line, "owner": record.owner}) + b"\n")
            written += 1
        cursor = Cursor(page[-1].created_at, page[-1].id)
    return written, unfinished


def check(path: Path) -> int:
    """Return the number of predictions in a file.

    Raises:
        ApplianceError: names the lines that are not predictions, or are unfinished, with the reasons.
    """
    problems = []
    count = 0
    for number, line in _lines(path):
        try:
            parse(line, "")
            count += 1
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ApplianceError("\n".join([f"{path}: nothing was imported:", *problems[:_SHOWN], *more]))
    return count


async def load(store: Store, path: Path, owner: str) -> Imported:
    """Store the predictions of a file that ``check`` has accepted, in batches.

    Predictions without an owner get ``owner``.

    Raises:
        ApplianceError: a batch could not be stored; the message has the number of stored predictions.
    """
    added = seen = 0
    batch: list[Prediction] = []
    for number, line in _lines(path):
        try:
            batch.append(parse(line, owner))
        except ValueError as error:  # the file was changed after the check
            raise _stopped(path, number, added, error) from error
        if len(batch) == _BATCH:
            added += await _store(store, batch, path, number, added)
            seen += len(batch)
            batch = []
    if batch:
        added += await _store(store, batch, path, number, added)
        seen += len(batch)
    return Imported(added, seen - added)


async def _store(store: Store, batch: list[Prediction], path: Path, line: int, added: int) -> int:
    try:
        return await imports.add_missing(store, batch)
    except StoreError as error:
        raise _stopped(path, line, added, error) from error


def _stopped(path: Path, line: int, added: int, error: Exception) -> ApplianceError:
    return ApplianceError(
        f"{path}: stopped at line {line} or shortly before: {error}: {added} predictions were imported; "
        "import the file again to add the rest"
    )


def parse(line: bytes, owner: str) -> Prediction:
    """Return the prediction in a line.

    Raises:
        ValueError: the line is not JSON of a prediction that has ended.
    """
    found = msgspec.json.decode(line, type=_Line)
    if not found.status.terminal:
        raise ValueError(f"the prediction {found.id} has not ended: its status is {found.status}")
    times = {name: getattr(found, name) for name in ("created_at", "started_at", "completed_at")}
    for name, time in times.items():
        if time is not None and time.tzinfo is None:
            raise ValueError(f"{name} has no time zone: add Z for UTC")
    fields: dict[str, Any] = {name: getattr(found, name) for name in _Line.__struct_fields__}
    fields |= {name: None if time is None else time.timestamp() for name, time in times.items()}
    fields["owner"] = found.owner or owner
    return Prediction(
        **fields,
        stream_token=new_stream_token(),
        attempt=1,
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers from 1."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ApplianceError(f"{path} cannot be read: {error.strerror}") from error
