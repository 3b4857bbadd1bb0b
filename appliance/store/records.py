"""Records and filters in the methods of the store."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypedDict

import msgspec

from appliance.domain.prediction import Log, Metric, Output, Status

#: Seconds before a failed write that must succeed is retried.
RETRY_STORE: Final = 1.0

#: Events for ``append``; ``Done`` is not one, because ``finish`` stores the end.
Progress = Log | Output | Metric


class Receiver(NamedTuple):
    """An owner and the hostname that receives the owner's webhooks."""

    owner: str
    hostname: str


class Cursor(NamedTuple):
    """A position in a list sorted by ``(created_at, id)``, and the direction to read from it.

    The record at the position is not part of the page. Forwards means older, ``backwards`` newer.
    """

    created_at: float
    id: str
    backwards: bool = False


class Filter(TypedDict, total=False):
    """Conditions for ``Store.list``; a condition that is missing or None does not apply.

    ``created_after`` is inclusive, ``created_before`` exclusive, both Unix seconds. Without ``training``
    the list has only predictions, with True only trainings, with None both.
    """

    model: str | None
    status: Status | None
    source: str | None
    training: bool | None
    parent: str | None
    token: str | None  # id of the token
    created_after: float | None
    created_before: float | None


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a model has or had. ``created_at`` is when it was first seen, Unix seconds."""

    id: str  # 64 hex digits
    model: str  # owner/name; several models may share a version id
    created_at: float
    document: dict[str, Any]  # the OpenAPI document, as served


class Delivery(NamedTuple):
    """The last webhook of a finished prediction, pending or finished. Times are Unix seconds."""

    id: str  # of the message, the same at every attempt
    prediction: str
    attempts: int  # number of failed attempts
    due_at: float  # time of the next attempt, or of the last one if finished
    problem: str | None  # why the last attempt failed
    ended_at: float | None  # when it was delivered, or given up if there is a problem
    receiver: Receiver
