"""`appliance audit`: list, export and verify the audit log, with or without a running appliance."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, JsonOption, print_json
from appliance.cli.tokens import with_store
from appliance.domain.audit import AuditRecord
from appliance.domain.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.store import Store

group = typer.Typer(
    no_args_is_help=True, help="List, export and verify the records of what administrators did."
)

_BATCH: Final = 500

WhoOption = Annotated[
    str | None, typer.Option(help="Only records of this account, id of a token, or IP address.")
]
ActionOption = Annotated[
    str | None, typer.Option(help="Only this action, such as token.create, or token for all on tokens.")
]
ObjectOption = Annotated[
    str | None, typer.Option("--object", help="Only records whose object contains this.")
]
SinceOption = Annotated[datetime | None, typer.Option(help="Only records since this time, in UTC.")]
UntilOption = Annotated[datetime | None, typer.Option(help="Only records before this time, in UTC.")]


@group.command(name="list")
def list_records(
    who: WhoOption = None,
    action: ActionOption = None,
    part: ObjectOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of records.")] = 50,
    config: ConfigOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest records, newest first."""
    from appliance.store import AuditFilter

    filters: AuditFilter = {
        "who": who,
        "action": action,
        "object": part,
        "since": _iso(since),
        "until": _iso(until),
    }

    async def newest(store: Store) -> list[AuditRecord]:
        return await store.audit.newest(limit=limit, filters=filters)

    found = with_store(config, home, newest)
    if as_json:
        print_json([_shown(record) for record in found])
        return
    for each in found:
        what = f"{each.action} {each.object}".strip() + (f" (x{each.count})" if each.count > 1 else "")
        typer.echo(f"{each.number:6}  {each.at[:19]}Z  {each.outcome:9}  {_who(each)}  {what}")


@group.command()
def export(
    file: Annotated[Path, typer.Argument(help="New file, such as audit.jsonl.")],
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Write all records to a file, oldest first, one JSON object a line, with their hashes."""
    from appliance.observability.audit_log import json_line

    async def write(store: Store) -> int:
        number = written = 0
        while records := await store.audit.after(number, _BATCH):
            out.writelines(f"{json_line(record)}\n" for record in records)
            number, written = records[-1].number, written + len(records)
        await store.audit.record(command("audit.export", str(file)))
        return written

    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            written = with_store(config, home, write)
    except FileExistsError as error:
        raise ApplianceError(f"{file} exists already: choose another name, or remove it") from error
    except OSError as error:
        raise ApplianceError(f"{file} cannot be written: {error.strerror}") from error
    typer.echo(f"{file}: {written} records")


@group.command()
def verify(config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check that no record was changed, removed or moved. The exit status is 1 if one was."""
    first, last, hash, fault = with_store(config, home, lambda store: store.audit.verify())
    if as_json:
        problem = None if fault is None else {"number": fault.number, "problem": fault.problem}
        print_json({"first": first, "last": last, "hash": hash, "fault": problem})
    if fault is not None:
        raise ApplianceError(f"the audit log is not intact: record {fault.number} {fault.problem}")
    if not as_json and first == 0:
        typer.echo("the audit log has no records")
    elif not as_json:
        typer.echo(f"records {first} to {last} are intact; hash of record {last}: {hash}")


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC).isoformat()


def _who(record: AuditRecord) -> str:
    parts = (record.owner, record.token and f"token {record.token}", record.address)
    return ", ".join(filter(None, parts)) or "unknown"


def _shown(record: AuditRecord) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(record)
    fields.pop("body")
    return fields
