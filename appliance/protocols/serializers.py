"""Make the responses of Replicate's HTTP API from records, and server-sent events from output. Pure.

``base`` is the origin that the client used, without a slash at the end: all URLs are absolute.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from appliance.domain.deployment import Release
from appliance.domain.file import File, OutputFile, refuse
from appliance.domain.model import Build
from appliance.domain.prediction import FILE_STREAM, Prediction, Status
from appliance.protocols.admin_types import Phase
from appliance.protocols.response_types import (
    AccountResponse,
    BuildResponse,
    BuildUrls,
    DeploymentConfiguration,
    DeploymentRelease,
    DeploymentResponse,
    FileChecksums,
    FileResponse,
    FileUrls,
    Item,
    Page,
    PredictionResponse,
    PredictionUrls,
    TrainingResponse,
    VersionResponse,
)

#: The version of Cog whose schemas the versions have; clients tell iterators from lists by it.
COG_VERSION: Final = "0.23.1"
#: A comment that keeps an idle stream open, because one client disconnects after 30 s without a byte.
HEARTBEAT: Final = b": hi\n\n"

#: Expiry of files that never expire: clients require a time.
FOR_EVER: Final = 253402300799.0  # the end of the year 9999

_BREAK: Final = re.compile(r"\r\n?|\n")


def timestamp(seconds: float) -> str:
    """Return Unix seconds as RFC 3339 in UTC with six decimals, which every client parses."""
    microseconds = round(seconds * 1e6)
    return f"{_second(microseconds // 1_000_000)}.{microseconds % 1_000_000:06}Z"


@functools.lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:-6]


def encode(value: Any, base: str = "") -> bytes:
    """Return ``value`` as JSON, with an absolute URL for every file in it."""
    return msgspec.json.encode(value, enc_hook=_file_urls(base))


def to_builtins(value: Any, base: str = "") -> Any:
    """Return ``value`` as the dicts, lists and strings that its JSON decodes to."""
    return msgspec.to_builtins(value, enc_hook=_file_urls(base))


def _file_urls(base: str) -> Callable[[Any], Any]:
    return lambda part: base + part.url_path if isinstance(part, OutputFile) else refuse(part)


def file(row: File, base: str) -> FileResponse:
    return FileResponse(
        id=row.id,
        name=row.name,
        content_type=row.content_type,
        size=row.size,
        etag=row.md5,
        checksums=FileChecksums(sha256=row.sha256, md5=row.md5),
        metadata=row.metadata,
        created_at=timestamp(row.created_at),
        expires_at=timestamp(FOR_EVER if row.expires_at is None else row.expires_at),
        urls=FileUrls(get=f"{base}/v1/files/{row.id}"),
    )


def prediction(record: Prediction, base: str) -> PredictionResponse:
    """Return a prediction as the response of ``GET``.

    ``output`` is absent until there is output, because clients that poll take null for the final output.
    """
    url = f"{base}/v1/predictions/{record.id}"
    urls = PredictionUrls(
        get=url,
        cancel=f"{url}/cancel",
        stream=f"{base}{_stream_path(record.stream_token)}",
        web=f"{base}/p/{record.id}",
    )
    output = UNSET if record.output is None and not record.status.terminal else record.plain_output
    webhook = record.webhook
    return PredictionResponse(
        id=record.id,
        model=record.model,
        version=record.version,
        input=record.input,
        logs=record.logs,
        error=record.error,
        status=record.status,
        created_at=timestamp(record.created_at),
        data_removed=record.data_removed,
        source=record.source,
        started_at=_time(record.started_at),
        completed_at=_time(record.completed_at),
        metrics=record.metrics or UNSET,
        webhook=UNSET if webhook is None else webhook.url,
        webhook_events_filter=UNSET if webhook is None else list(webhook.events),
        deployment=UNSET if record.deployment is None else record.deployment,
        parent=UNSET if record.parent is None else record.parent,
        operation=UNSET if record.operation is None else record.operation,
        deadline=_time(record.deadline),
        urls=urls,
        output=output,
    )


def _time(seconds: float | None) -> str | UnsetType:
    return UNSET if seconds is None else timestamp(seconds)


def _stream_path(token: str) -> str:
    # The JavaScript client makes file objects from URLs that begin with ``/v1/files/stream``.
    return f"/v1/files/stream/{token}" if token.startswith(FILE_STREAM) else f"/v1/streams/{token}"


def accepted(record: Prediction, base: str) -> PredictionResponse:
    """Return the response to the creation of a prediction: ``starting`` without output, unless it has ended.

    Clients skip output in the stream that was in this response already, and take every status except
    ``starting`` for final.
    """
    if record.status.terminal:
        return prediction(record, base)
    response = prediction(
        record.evolve(
            status=Status.STARTING, output=None, logs="", metrics={}, started_at=None, completed_at=None
        ),
        base,
    )
    response.output = None
    return response


def version(id: str, created_at: float, document: dict[str, Any]) -> VersionResponse:
    """Return a version of a model; ``document`` is its OpenAPI document."""
    return VersionResponse(
        id=id,
        created_at=timestamp(created_at),
        cog_version=document.get("info", {}).get("x-cog-version", COG_VERSION),
        openapi_schema=document,
    )


def training(record: Prediction, base: str) -> TrainingResponse:
    """Return a training as the response of ``GET``. ``output`` is absent until the new version exists."""
    url = f"{base}/v1/trainings/{record.id}"
    fields = msgspec.structs.asdict(prediction(record, base))
    fields["urls"] = PredictionUrls(get=url, cancel=f"{url}/cancel", web=f"{base}/p/{record.id}")
    fields["output"] = record.output if isinstance(record.output, dict) else UNSET
    fields["destination"] = UNSET if record.destination is None else record.destination
    return TrainingResponse(**fields)


def prediction_or_training(record: Prediction, base: str) -> PredictionResponse:
    return (prediction if record.destination is None else training)(record, base)


def listed(record: Prediction, base: str) -> PredictionResponse:
    """Return a prediction as an item of a list: ``output`` is null until there is output.

    ``GET`` of one prediction omits ``output`` instead, because streaming clients would treat null as output.
    Replicate's OpenAPI document requires ``output`` in lists of predictions, and allows no null in lists of
    trainings.
    """
    response = prediction(record, base)
    if response.output is UNSET:
        response.output = None
    return response


def timeline(record: Prediction, now: float) -> list[Phase]:
    """Return the phases of a prediction until ``now`` (Unix seconds): queued, loading its model, running.

    The current phase has no end. After retries only the last attempt has phases of its own: the time of
    earlier attempts counts as queued.
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


def _phase(
    name: Literal["queued", "loading", "running"], begin: float, end: float | None, now: float
) -> Phase:
    return Phase(
        phase=name,
        begin=timestamp(begin),
        end=None if end is None else timestamp(end),
        seconds=round((now if end is None else end) - begin, 6),
    )


def build(record: Build, base: str) -> BuildResponse:
    url = f"{base}/v1/builds/{record.id}"
    return BuildResponse(
        id=record.id,
        model=record.model,
        version=record.version,
        status=record.status,
        step=record.step,
        logs=record.logs,
        error=record.error,
        created_at=timestamp(record.created_at),
        completed_at=None if record.completed_at is None else timestamp(record.completed_at),
        urls=BuildUrls(get=url, cancel=f"{url}/cancel"),
    )


def release(record: Release, created_by: AccountResponse) -> DeploymentResponse:
    return DeploymentResponse(
        owner=record.owner,
        name=record.name,
        current_release=DeploymentRelease(
            number=record.number,
            model=record.model,
            version=record.version,
            created_at=timestamp(record.created_at),
            created_by=created_by,
            configuration=DeploymentConfiguration(
                hardware=record.hardware,
                min_instances=record.min_instances,
                max_instances=record.max_instances,
            ),
        ),
    )


def account(username: str, name: str | None, base: str) -> AccountResponse:
    """Return an account. Some clients require the name, others the URLs, which lead to the account's page."""
    url = f"{base}/{username}"
    return AccountResponse(
        type="organization", username=username, name=name or username, github_url=url, avatar_url=url
    )


def page(results: list[Item], *, next: str | None = None, previous: str | None = None) -> Page[Item]:
    """Return a page of a list; ``next`` and ``previous`` are absolute URLs."""
    return Page(next=next, previous=previous, results=results)


# -- server-sent events ------------------------------------------------------------------------------------


def event_id(record: Prediction, number: int) -> str:
    """Return the id of event ``number`` in the stream of a prediction."""
    return f"{int(record.created_at)}:{number}"


def event_number(id: str | None) -> int:
    """Return the event number in a ``Last-Event-ID``; 0, for the whole stream, if ``id`` has none."""
    number = (id or "").rpartition(":")[2].strip()
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else 0


def event(name: str, id: str, data: str) -> bytes:
    """Return a server-sent event. Each line of ``data`` becomes a field; CR and CRLF become LF."""
    lines = "".join(f"data: {line}\n" for line in _BREAK.split(data))
    return f"event: {name}\nid: {id}\n{lines}\n".encode(errors="replace")


def outputs(record: Prediction, items: Iterable[tuple[int, Any]], base: str) -> bytes:
    """Return output items, with their numbers from 1, as events."""
    return b"".join(event("output", event_id(record, number), _item(value, base)) for number, value in items)


def ending(record: Prediction, number: int, after: int = 0) -> bytes:
    """Return the last events of the stream of an ended prediction with ``number`` output items.

    Events up to number ``after`` are left out, because the client has them.
    """
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
            return base + value.url_path
    return encode(value, base).decode()


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
