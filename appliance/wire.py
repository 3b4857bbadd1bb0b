"""Records as the JSON that Replicate's clients read, and output as server-sent events. Pure.

``base`` is always the origin the client used, without a slash at its end: every address is absolute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from appliance.config import ModelConfig
from appliance.prediction import Prediction, Status

#: The Cog whose schema dialect versions are written in; clients read it to tell iterators from lists.
COG_VERSION: Final = "0.23.1"
#: A comment, which keeps a silent stream open: one client gives up after 30 s without a byte.
HEARTBEAT: Final = b": hi\n\n"

_BREAK: Final = re.compile(r"\r\n?|\n")


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC with six digits, which every client parses."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
            "stream": f"{base}/v1/streams/{record.stream_token}",
            "web": f"{base}/p/{record.id}",
        },
    }
    if record.output is not None or record.status.terminal:
        shown["output"] = record.output
    if record.started_at is not None:
        shown["started_at"] = timestamp(record.started_at)
    if record.completed_at is not None:
        shown["completed_at"] = timestamp(record.completed_at)
    if record.metrics:
        shown["metrics"] = record.metrics
    if record.webhook is not None:
        shown["webhook"] = record.webhook.url
        shown["webhook_events_filter"] = list(record.webhook.events)
    if record.deadline is not None:
        shown["deadline"] = timestamp(record.deadline)
    return shown


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


def model(configured: ModelConfig, latest: dict[str, Any], run_count: int, base: str) -> dict[str, Any]:
    """A model with its newest version."""
    owner, name = configured.name.split("/")
    return {
        "url": f"{base}/{configured.name}",
        "owner": owner,
        "name": name,
        "description": configured.description or None,
        "visibility": configured.visibility,
        "is_official": False,
        "github_url": configured.github_url,
        "paper_url": configured.paper_url,
        "license_url": configured.license_url,
        "cover_image_url": configured.cover_image_url,
        "run_count": run_count,
        "default_example": None,
        "latest_version": latest,
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


def outputs(record: Prediction, items: Iterable[tuple[int, Any]]) -> bytes:
    """Output items, with their numbers from 1, as events."""
    return b"".join(
        event("output", event_id(record, number), value if isinstance(value, str) else _json(value))
        for number, value in items
    )


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


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
