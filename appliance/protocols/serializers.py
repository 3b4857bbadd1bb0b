"""Records as the JSON that Replicate's clients read, and output as server-sent events. Pure.

``base`` is always the origin the client used, without a slash at its end: every address is absolute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from appliance.domain.deployment import Release
from appliance.domain.file import File, OutputFile, refuse
from appliance.domain.model import Build
from appliance.domain.prediction import FILE_STREAM, Prediction, Status

#: The Cog whose schema dialect versions are written in; clients read it to tell iterators from lists.
COG_VERSION: Final = "0.23.1"
#: A comment, which keeps a silent stream open: one client gives up after 30 s without a byte.
HEARTBEAT: Final = b": hi\n\n"

#: What clients are told of a file that never expires: they want a time.
FOR_EVER: Final = 253402300799.0  # the end of the year 9999

_BREAK: Final = re.compile(r"\r\n?|\n")


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC with six digits, which every client parses."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def encode(value: Any, base: str = "") -> bytes:
    """``value`` as JSON, with an absolute address for every file in it."""
    return msgspec.json.encode(
        value, enc_hook=lambda part: base + part.address if isinstance(part, OutputFile) else refuse(part)
    )


def file(row: File, base: str) -> dict[str, Any]:
    """An upload, as JSON that holds what every client looks for."""
    return {
        "id": row.id,
        "name": row.name,
        "content_type": row.content_type,
        "size": row.size,
        "etag": row.md5,
        "checksums": {"sha256": row.sha256, "md5": row.md5},
        "metadata": row.metadata,
        "created_at": timestamp(row.created_at),
        "expires_at": timestamp(FOR_EVER if row.expires_at is None else row.expires_at),
        "urls": {"get": f"{base}/v1/files/{row.id}"},
    }


def prediction(record: Prediction, base: str) -> dict[str, Any]:
    """The record as ``GET`` shows it.

    Output that is not there yet is left out: a client that polls takes null for an answer (rule 6).
    """
    address = f"{base}/v1/predictions/{record.id}"
    shown: dict[str, Any] = {
        "id": record.id,
        "model": record.model,
        "version": record.version,
        "input": record.input,
        "logs": record.logs,
        "error": record.error,
        "status": record.status.value,
        "created_at": timestamp(record.created_at),
        "data_removed": record.data_removed,
        "source": record.source,
        "urls": {
            "get": address,
            "cancel": f"{address}/cancel",
            "stream": f"{base}{_stream_path(record.stream_token)}",
            "web": f"{base}/p/{record.id}",
        },
    }
    if record.output is not None or record.status.terminal:
        shown["output"] = record.plain_output
    if record.started_at is not None:
        shown["started_at"] = timestamp(record.started_at)
    if record.completed_at is not None:
        shown["completed_at"] = timestamp(record.completed_at)
    if record.metrics:
        shown["metrics"] = record.metrics
    if record.webhook is not None:
        shown["webhook"] = record.webhook.url
        shown["webhook_events_filter"] = list(record.webhook.events)
    if record.deployment is not None:
        shown["deployment"] = record.deployment
    if record.parent is not None:
        shown["parent"] = record.parent
    if record.operation is not None:
        shown["operation"] = record.operation
    if record.deadline is not None:
        shown["deadline"] = timestamp(record.deadline)
    return shown


def _stream_path(token: str) -> str:
    """The JavaScript client makes file objects of what comes from an address that begins so."""
    return f"/v1/files/stream/{token}" if token.startswith(FILE_STREAM) else f"/v1/streams/{token}"


def accepted(record: Prediction, base: str) -> dict[str, Any]:
    """A record as the answer to its creation: always ``starting`` and without output, until it is terminal.

    Clients take the output in this answer for seen already, and any other status for final (rule 3).
    """
    if record.status.terminal:
        return prediction(record, base)
    first = record.evolve(
        status=Status.STARTING, output=None, logs="", metrics={}, started_at=None, completed_at=None
    )
    return {**prediction(first, base), "output": None}


def version(id: str, created_at: float, document: dict[str, Any]) -> dict[str, Any]:
    """A version; ``document`` is its whole OpenAPI document."""
    return {
        "id": id,
        "created_at": timestamp(created_at),
        "cog_version": COG_VERSION,
        "openapi_schema": document,
    }


def training(record: Prediction, base: str) -> dict[str, Any]:
    """A training as ``GET`` shows it: its output is an object, or is not there."""
    address = f"{base}/v1/trainings/{record.id}"
    shown = prediction(record, base)
    if not isinstance(record.output, dict):  # the bare weights, of which no version is made yet or ever
        shown.pop("output", None)
    urls = {"get": address, "cancel": f"{address}/cancel", "web": shown["urls"]["web"]}
    return {**shown, "urls": urls, "destination": record.destination}


def whichever(record: Prediction, base: str) -> dict[str, Any]:
    """A prediction or a training as ``GET`` shows it."""
    return (prediction if record.destination is None else training)(record, base)


def listed(record: Prediction, base: str) -> dict[str, Any]:
    """A prediction as an item of a list: ``output`` is null until there is some.

    ``GET`` of one prediction omits ``output`` instead, because streaming clients would treat null as output.
    Replicate's description requires ``output`` in lists of predictions, and allows no null in lists of
    trainings.
    """
    return {"output": None, **prediction(record, base)}


def timeline(record: Prediction, now: float) -> list[dict[str, Any]]:
    """What a prediction's time went into until ``now`` (Unix seconds): queued, loading its model, running.

    A phase under way has no end yet. Of several attempts the last is told: those before it count as queued.
    """
    began = None if record.status is Status.STARTING else record.started_at
    over = record.completed_at
    if began is None:
        return [_phase("queued", record.created_at, over, now)]
    cold = record.metrics.get("cold_start", 0.0)
    load = max(record.created_at, began - cold)
    phases = [_phase("queued", record.created_at, load, now)]
    if cold:
        phases.append(_phase("loading", load, began, now))
    return [*phases, _phase("running", began, over, now)]


def _phase(name: str, begin: float, end: float | None, now: float) -> dict[str, Any]:
    return {
        "phase": name,
        "from": timestamp(begin),
        "to": None if end is None else timestamp(end),
        "seconds": round((now if end is None else end) - begin, 6),
    }


def build(record: Build, base: str) -> dict[str, Any]:
    """A pushed project on its way to be a version."""
    return {
        "id": record.id,
        "model": record.model,
        "version": record.version,
        "status": record.status,
        "step": record.step,
        "logs": record.logs,
        "error": record.error,
        "created_at": timestamp(record.created_at),
        "completed_at": None if record.completed_at is None else timestamp(record.completed_at),
        "urls": {
            "get": f"{base}/v1/builds/{record.id}",
            "cancel": f"{base}/v1/builds/{record.id}/cancel",
        },
    }


def release(record: Release, account: dict[str, Any]) -> dict[str, Any]:
    """A deployment in its newest release; ``account`` made that."""
    return {
        "owner": record.owner,
        "name": record.name,
        "current_release": {
            "number": record.number,
            "model": record.model,
            "version": record.version,
            "created_at": timestamp(record.created_at),
            "created_by": account,
            "configuration": {
                "hardware": record.hardware,
                "min_instances": record.min_instances,
                "max_instances": record.max_instances,
            },
        },
    }


def account(username: str, name: str | None, base: str) -> dict[str, Any]:
    """An account; one client insists on a name, others on addresses, of which it has one only."""
    return {
        "type": "organization",
        "username": username,
        "name": name or username,
        "github_url": f"{base}/{username}",
        "avatar_url": f"{base}/{username}",
    }


def page(results: list[Any], *, next: str | None = None, previous: str | None = None) -> dict[str, Any]:
    """The envelope of every list; ``next`` and ``previous`` are absolute addresses."""
    return {"next": next, "previous": previous, "results": results}


# -- server-sent events ------------------------------------------------------------------------------------


def event_id(record: Prediction, number: int) -> str:
    """The id of a stream's event: the same whenever it is replayed."""
    return f"{int(record.created_at)}:{number}"


def event_number(id: str | None) -> int:
    """The number in a ``Last-Event-ID``, 0 for none or one that is not ours: then everything is sent."""
    number = (id or "").rpartition(":")[2].strip()
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else 0


def event(name: str, id: str, data: str) -> bytes:
    """One event. Every line of the data gets a line of its own; CR cannot be said in this format."""
    lines = "".join(f"data: {line}\n" for line in _BREAK.split(data))
    return f"event: {name}\nid: {id}\n{lines}\n".encode(errors="replace")


def outputs(record: Prediction, items: Iterable[tuple[int, Any]], base: str) -> bytes:
    """Output items, with their numbers from 1, as events."""
    return b"".join(event("output", event_id(record, number), _item(value, base)) for number, value in items)


def ending(record: Prediction, number: int, after: int = 0) -> bytes:
    """The last events of a terminal prediction with ``number`` items of output, those over ``after``."""
    events = []
    match record.status:
        case Status.FAILED:
            events.append(("error", _json({"detail": record.error})))
            events.append(("done", _json({"reason": "error"})))
        case Status.CANCELED | Status.ABORTED:
            events.append(("done", _json({"reason": "canceled"})))
        case _:
            events.append(("done", "{}"))
    return b"".join(
        event(name, event_id(record, position), data)
        for position, (name, data) in enumerate(events, number + 1)
        if position > after
    )


def _item(value: Any, base: str) -> str:
    match value:
        case str():
            return value
        case OutputFile():
            return base + value.address
    return encode(value, base).decode()


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
