"""Parameters and results of the methods of ``Store``."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, TypedDict

import msgspec

from appliance.domain.prediction import Log, Metric, Output, Prediction, Status

#: Seconds between attempts of a write that must succeed.
RETRY_STORE: Final = 1.0

#: Events that ``Store.append`` takes. ``Store.finish`` takes the last event, ``Done``.
Progress = Log | Output | Metric


class Receiver(NamedTuple):
    """An account, and one hostname to which its webhooks are sent."""

    owner: str
    hostname: str


class Cursor(NamedTuple):
    """Where a page begins in a list sorted by ``(created_at, id)``, newest first.

    The page has the records after this position, or with ``backwards`` the ones before.
    """

    created_at: float
    id: str
    backwards: bool = False


class Filter(TypedDict, total=False):
    """Conditions for ``Store.list``. A missing condition, or None, matches everything.

    ``training`` is the exception: if it is missing, trainings are left out. True selects only trainings.
    ``created_after`` (inclusive) and ``created_before`` (exclusive) are Unix seconds. ``slower_than`` is the
    time from creation to end in seconds; predictions that have not ended are left out.
    """

    model: str | None
    status: Status | None
    source: str | None
    training: bool | None
    parent: str | None
    token: str | None  # id of the token
    slower_than: float | None
    created_after: float | None
    created_before: float | None


class Found(NamedTuple):
    """Predictions that contain a text, newest first, and where the search stopped before it was complete."""

    predictions: list[Prediction]
    stopped: (
        Cursor | None
    )  # position of the last prediction that was searched; None: nothing is left to search


class Position(NamedTuple):
    """A place in the list of predictions sorted by their ends, or of conversations by their last changes."""

    at: float  # Unix seconds
    number: int  # of the row


#: The position before everything.
FIRST: Final = Position(-math.inf, 0)


class Removal(NamedTuple):
    """Predictions whose data was removed, or removed conversations, and where to continue."""

    ids: list[str]
    position: Position | None  # of the last row that was looked at; None: there are no more


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A present or former version of a model."""

    id: str  # 64 hex digits
    model: str  # owner/name; several models may share a version id
    created_at: float  # when the version was first stored, in Unix seconds
    document: dict[str, Any]  # the OpenAPI document in the version's API response


class Delivery(NamedTuple):
    """The delivery of the webhook about a prediction's end. Times are Unix seconds."""

    id: str  # of the webhook message, the same at every attempt
    prediction: str
    attempts: int  # number of failed attempts
    due_at: float  # time of the next attempt, or of the last attempt if the delivery has ended
    problem: str | None  # why the last attempt failed
    ended_at: float | None  # when the webhook was delivered or given up; None if it is pending
    receiver: Receiver
