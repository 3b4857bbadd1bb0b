"""Records to and from database rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from appliance.domain import file
from appliance.domain.errors import StoreError, UnstorableValue
from appliance.domain.prediction import Prediction, Status, Webhook
from appliance.domain.token import Scope, Token
from appliance.store.base import Delivery, Progress, Receiver, VersionRow

Row = tuple[Any, ...]
T = TypeVar("T")


def pack(value: Any) -> bytes | str:
    """``value`` as msgpack, or as JSON text if it has an integer that msgpack cannot hold.

    Both keep what clients and models really send: NUL characters, infinities, NaN, integers of any size that
    Python will print.

    Raises:
        Unstorable: the value holds text that is not Unicode (lone surrogates), nests too deep, or has an
            object that is no data.
    """
    try:
        try:
            return msgspec.msgpack.encode(value, enc_hook=file.pack)
        except OverflowError:
            return json.dumps(msgspec.to_builtins(value, enc_hook=file.refuse), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:  # UnicodeEncodeError is a ValueError
        raise UnstorableValue(f"a value cannot be stored: {exc}") from exc


def unpack(body: bytes | str, type: type[T] | Any = Any) -> Any:
    """What ``pack`` was given, as ``type``; tuples have become lists.

    Raises:
        StoreError: the bytes are not what ``pack`` writes.
    """
    try:
        if isinstance(body, str):
            return msgspec.convert(json.loads(body), type)
        return msgspec.msgpack.decode(body, type=type, ext_hook=file.unpack)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise StoreError(f"a stored value cannot be read: {exc}") from exc


def prediction_columns(prediction: Prediction) -> dict[str, Any]:
    """Every column of ``predictions`` but the input."""
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "owner": prediction.owner,
        "status": prediction.status.value,
        "source": prediction.source,
        "created_at": prediction.created_at,
        "started_at": prediction.started_at,
        "completed_at": prediction.completed_at,
        "deadline": prediction.deadline,
        "stream_token": prediction.stream_token,
        "attempt": prediction.attempt,
        "n": prediction.n,
        "data_removed": prediction.data_removed,
        "error": prediction.error,
        "logs": prediction.logs,
        "output": None if prediction.output is None else pack(prediction.plain_output),
        "metrics": pack(prediction.metrics) if prediction.metrics else None,
        "webhook": None if prediction.webhook is None else pack(prediction.webhook),
        "deployment": prediction.deployment,
        "destination": prediction.destination,
        "parent": prediction.parent,
        "operation": prediction.operation,
        "token": prediction.token,
        "hardware": prediction.hardware,
        "trace": prediction.trace,
    }


def prediction(row: Row) -> Prediction:
    """A row of ``prediction_by_id`` and its like; the order is that of the query."""
    (
        id, model, version, owner, status, source, created_at, started_at, completed_at, deadline,
        stream_token, attempt, n, data_removed, error, logs, output, metrics, webhook,
        deployment, destination, parent, operation, token, hardware, trace, input,
    ) = row  # fmt: skip
    return Prediction(
        id=id,
        model=model,
        version=version,
        owner=owner,
        input=unpack(input),
        status=Status(status),
        output=None if output is None else unpack(output),
        logs=logs,
        error=error,
        metrics={} if metrics is None else unpack(metrics),
        source=source,
        created_at=created_at,
        started_at=started_at,
        completed_at=completed_at,
        deadline=deadline,
        stream_token=stream_token,
        attempt=attempt,
        n=n,
        data_removed=bool(data_removed),
        webhook=None if webhook is None else unpack(webhook, Webhook),
        deployment=deployment,
        destination=destination,
        parent=parent,
        operation=operation,
        token=token,
        hardware=hardware,
        trace=trace,
    )


def metric(body: bytes | str | None, name: str) -> Any:
    """One of a prediction's stored metrics; None if there is none, or they cannot be read."""
    try:
        metrics = None if body is None else unpack(body)
    except StoreError:
        return None
    return metrics.get(name) if isinstance(metrics, dict) else None


def fold(record: Prediction, events: Iterable[Row]) -> Prediction:
    """``record`` with the rows of ``events_of_attempt`` applied."""
    for n, body in events:
        record = record.apply(unpack(body, Progress), n)
    return record


def version(row: Row) -> VersionRow:
    """A row of ``versions``."""
    id, model, created_at, document = row
    return VersionRow(id=id, model=model, created_at=created_at, document=unpack(document))


def token(row: Row) -> Token:
    """A row of ``tokens``."""
    id, name, owner, digest, created_at, revoked_at, scope = row
    return Token(
        id=id,
        name=name,
        owner=owner,
        digest=digest,
        created_at=created_at,
        revoked_at=revoked_at,
        scope=Scope(scope),
    )


def delivery(row: Row) -> Delivery:
    """A row of ``due_deliveries`` or ``deliveries``."""
    id, prediction, attempts, due_at, problem, ended_at, receiver = row
    owner, _, host = receiver.rpartition(" ")  # a host has no space in it
    return Delivery(id, prediction, attempts, due_at, problem, ended_at, Receiver(owner, host))


def token_columns(token: Token) -> dict[str, Any]:
    """Every column of ``tokens``."""
    return msgspec.structs.asdict(token) | {"scope": token.scope.value}
