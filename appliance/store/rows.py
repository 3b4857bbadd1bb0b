"""Converts records to database rows, and rows to records."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec

from appliance.domain import file, usage
from appliance.domain.errors import StoreError, UnstorableValue
from appliance.domain.prediction import Prediction, Status, Webhook
from appliance.domain.token import Scope, Token
from appliance.store.queries import COLUMNS, TOKEN_COLUMNS
from appliance.store.records import Delivery, Receiver, VersionRow

Row = tuple[Any, ...]
T = TypeVar("T")
_fields: Final = attrgetter(*COLUMNS)


class JsonText(str):
    """A value that was encoded as JSON, because msgpack cannot hold it."""

    __slots__ = ()


def pack(value: Any) -> bytes | str:
    """Encode ``value`` as msgpack, or as JSON text if it contains an integer that is too large for msgpack.

    Both preserve NUL characters, infinities and NaN.

    Raises:
        UnstorableValue: the value contains text that is not Unicode (lone surrogates), is nested too deeply,
            or contains an object that cannot be encoded.
    """
    try:
        try:
            return msgspec.msgpack.encode(value, enc_hook=file.pack)
        except OverflowError:
            return JsonText(json.dumps(msgspec.to_builtins(value, enc_hook=file.refuse), ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as exc:  # UnicodeEncodeError is a ValueError
        raise UnstorableValue(f"a value cannot be stored: {exc}") from exc


def unpack(body: bytes | str, type: type[T] | Any = Any) -> Any:
    """Decode a value that ``pack`` has encoded. The result has the type ``type``.

    If ``type`` is Any, tuples become lists.

    Raises:
        StoreError: ``pack`` did not write these bytes.
    """
    try:
        if isinstance(body, str):
            return msgspec.convert(json.loads(body), type)
        return msgspec.msgpack.decode(body, type=type, ext_hook=file.unpack)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise StoreError(f"a value in the database cannot be decoded: {exc}") from exc


def prediction_columns(prediction: Prediction) -> dict[str, Any]:
    return dict(zip(COLUMNS, _fields(prediction), strict=True)) | {
        "status": prediction.status.value,
        "output": None if prediction.output is None else pack(prediction.plain_output),
        "metrics": pack(prediction.metrics) if prediction.metrics else None,
        "webhook": None if prediction.webhook is None else pack(prediction.webhook),
    }


def usage_columns(prediction: Prediction) -> dict[str, int]:
    metrics = prediction.metrics if prediction.status.terminal else {}
    return {
        "predict_us": usage.microseconds(metrics.get("predict_time")),
        "cold_start_us": usage.microseconds(metrics.get("cold_start")),
        "input_tokens": usage.count(metrics.get("input_token_count")),
        "output_tokens": usage.count(metrics.get("output_token_count")),
    }


def unindexed_prediction(prediction: Prediction) -> list[Any]:
    """Return the values for ``insert_unindexed_prediction``, in the order of its columns."""
    columns = prediction_columns(prediction)
    return [*columns.values(), *usage_columns(prediction).values(), pack(prediction.input)]


def prediction(row: Row) -> Prediction:
    """Convert a row with all ``COLUMNS`` and then the input."""
    *values, input = row
    columns = dict(zip(COLUMNS, values, strict=True))
    output, metrics, webhook = columns["output"], columns["metrics"], columns["webhook"]
    decoded = {
        "input": unpack(input),
        "status": Status(columns["status"]),
        "output": None if output is None else unpack(output),
        "metrics": {} if metrics is None else unpack(metrics),
        "data_removed": bool(columns["data_removed"]),
        "webhook": None if webhook is None else unpack(webhook, Webhook),
    }
    return Prediction(**(columns | decoded))


def metric(body: bytes | str | None, name: str) -> Any:
    """Return one metric from the encoded metrics of a prediction; None if missing or not decodable."""
    try:
        metrics = None if body is None else unpack(body)
    except StoreError:
        return None
    return metrics.get(name) if isinstance(metrics, dict) else None


def version(row: Row) -> VersionRow:
    id, model, created_at, document = row
    return VersionRow(id=id, model=model, created_at=created_at, document=unpack(document))


def token(row: Row) -> Token:
    columns = dict(zip(TOKEN_COLUMNS, row, strict=True))
    columns["scope"] = Scope(columns["scope"])
    for name in ("networks", "models"):
        columns[name] = None if columns[name] is None else tuple(columns[name].split())
    return Token(**columns)


def delivery(row: Row) -> Delivery:
    id, prediction, attempts, due_at, problem, ended_at, receiver = row
    owner, _, hostname = receiver.rpartition(" ")  # a hostname contains no space
    return Delivery(id, prediction, attempts, due_at, problem, ended_at, Receiver(owner, hostname))


def token_columns(token: Token) -> dict[str, Any]:
    columns = {name: getattr(token, name) for name in TOKEN_COLUMNS}
    columns["scope"] = token.scope.value
    for name in ("networks", "models"):
        columns[name] = None if columns[name] is None else " ".join(columns[name])
    return columns
