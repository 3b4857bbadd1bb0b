"""The record of a prediction, the transitions of its status, and the events that change the record.

Records are immutable: each change returns a new record. Only ``appliance.gateway.engine`` changes records,
and only ``appliance.store`` stores them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, Final, Literal, overload
from urllib.parse import urlsplit

import msgspec

#: From base32 to Crockford's alphabet, which has no i, l, o and u; Replicate's ids use it.
#: Byte -> character of an id; each of the 32 characters stands for eight bytes.
_CROCKFORD: Final = b"0123456789abcdefghjkmnpqrstvwxyz" * 8
ID_LENGTH: Final = 26
FILE_STREAM: Final = "files-"  # prefix of stream tokens of predictions that output files


class Status(StrEnum):
    """Status of a prediction, as stored and as shown by the API."""

    STARTING = "starting"  # accepted and stored: queued, or its model is being loaded
    PROCESSING = "processing"  # handed to a worker process
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # `error` says why
    CANCELED = "canceled"  # by the caller, or at its deadline while running
    ABORTED = "aborted"  # its deadline (header Cancel-After) passed before it started

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED})

WEBHOOK_EVENTS: Final = ("start", "output", "logs", "completed")

#: Status -> the statuses it may change to. `processing -> starting` is a retry after a lost worker process.
TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    Status.STARTING: frozenset({Status.PROCESSING, Status.FAILED, Status.CANCELED, Status.ABORTED}),
    Status.PROCESSING: frozenset({Status.STARTING, Status.SUCCEEDED, Status.FAILED, Status.CANCELED}),
    **{status: frozenset() for status in TERMINAL},
}


class Log(msgspec.Struct, frozen=True, tag="log"):
    """Text that the model wrote to stdout or stderr; the text may end within a line."""

    text: str


class Output(msgspec.Struct, frozen=True, tag="output"):
    """Output of the model.

    With ``append``, ``values`` are the next items of an iterator. Without ``append``, ``values`` has one
    item: the complete output.
    """

    values: list[Any]
    append: bool = True


class Metric(msgspec.Struct, frozen=True, tag="metric"):
    """A metric of the prediction; a later event of the same name replaces the value."""

    name: str
    value: Any


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The last event of each run. ``error`` is set only if the status is ``failed``."""

    status: Literal["succeeded", "failed", "canceled"]
    error: str | None = None


Event = Log | Output | Metric | Done


class Emitted(msgspec.Struct, frozen=True, array_like=True):
    """One event that a worker process sends to the engine.

    ``n`` numbers the events of one attempt from 1 without gaps, so a restarted gateway can tell which events
    are already in the record.
    """

    id: str
    attempt: int
    n: int
    event: Event


class Job(msgspec.Struct, frozen=True):
    """One attempt of a prediction, as sent to a worker process. The input is validated and complete."""

    id: str
    attempt: int
    input: dict[str, Any]  # files are absolute paths on this machine
    folder: str = ""  # absolute path for output files; created with the first file
    adapter: str | None = None  # absolute path of the folder with the weights of a trained version
    inline: int = -1  # output files up to this size in bytes become data: URLs
    token: str | None = None  # API token with which the model may call other models
    operation: str | None = None  # as in `Prediction`


class Webhook(msgspec.Struct, frozen=True):
    """The URL that a client wants events of its prediction sent to, and the kinds of events."""

    url: str
    events: tuple[str, ...]  # some of WEBHOOK_EVENTS
    origin: str  # scheme and host of the client's request; URLs in the body begin with them

    @property
    def host(self) -> str:
        """The host name or IP address in ``url``; empty if ``url`` has none."""
        try:
            return urlsplit(self.url).hostname or ""
        except ValueError:
            return ""


class OutputItems(Sequence[Any]):
    """An immutable sequence of the items that an iterator has output so far; extending it copies no items.

    All records of one attempt share one list. Each record uses only as many items as the list had when the
    record was made.
    """

    __slots__ = ("_length", "_shared")

    def __init__(self, shared: list[Any]) -> None:
        """The caller must not change ``shared`` afterwards."""
        self._shared = shared
        self._length = len(shared)

    def extended(self, values: Sequence[Any]) -> OutputItems:
        """Return these items followed by ``values``. Copies all items if this is not the newest record."""
        if len(self._shared) != self._length:
            return OutputItems([*self, *values])
        self._shared.extend(values)
        return OutputItems(self._shared)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._shared[position] for position in range(*index.indices(self._length))]
        return self._shared[range(self._length)[index]]

    def __iter__(self) -> Iterator[Any]:
        return islice(self._shared, self._length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | OutputItems) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def _items_of(output: Any) -> OutputItems:
    if isinstance(output, OutputItems):
        return output
    return OutputItems(list(output) if isinstance(output, list) else [])


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one prediction. Times are Unix seconds."""

    id: str
    model: str  # owner/name, even if the caller used an alias
    version: str  # 64 hex digits
    owner: str  # username of the account that created it
    input: dict[str, Any]  # as the caller sent it, without defaults and with secrets redacted
    status: Status = Status.STARTING
    output: Any = None  # JSON data; `OutputItems` while an iterator runs
    logs: str = ""
    error: str | None = None
    metrics: dict[str, Any] = {}
    source: str = "api"
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    deadline: float | None = None  # from the header Cancel-After
    stream_token: str  # secret part of the URL `urls.stream`
    attempt: int = 0  # number of attempts that have started
    n: int = 0  # number of the last event of this attempt that was applied
    data_removed: bool = False
    webhook: Webhook | None = None
    deployment: str | None = None  # owner/name of the deployment, if it was created through one
    destination: str | None = None  # for a training: owner/name of the model that gets the new version
    parent: str | None = None  # id of the prediction whose model created this one
    # One of `runners.operations` if the request came through another API, such as OpenAI's. Then `input` is
    # the body of that request, and `output` is the response or a list of the stream's chunks.
    operation: str | None = None
    token: str | None = None  # id of the API token that created it; for a child prediction, its parent's
    hardware: str | None = None  # SKU of the devices of its last attempt
    trace: str | None = None  # W3C traceparent of the request, if requests are traced

    def __str__(self) -> str:
        return self.id if self.parent is None else f"{self.id} (child of {self.parent})"

    @property
    def about(self) -> dict[str, str]:
        return {"prediction": self.id, "model": self.model}

    def evolve(self, **changes: Any) -> Prediction:
        return msgspec.structs.replace(self, **changes)

    def transition(self, status: Status, **changes: Any) -> Prediction:
        """Return a copy with a new status and the given fields changed.

        Raises:
            ValueError: ``TRANSITIONS`` does not allow the change from the present status.
        """
        if status not in TRANSITIONS[self.status]:
            raise ValueError(f"prediction {self.id}: status {self.status} cannot become {status}")
        return self.evolve(status=status, **changes)

    def started(self, now: float, cold_start: float, hardware: str | None) -> Prediction:
        """Return the record at the start of its next attempt, without output and logs of earlier attempts.

        ``cold_start`` is the time in seconds that the prediction waited for its model to be loaded.
        ``hardware`` is the SKU of the devices that hold the model.
        """
        metrics = {"cold_start": round(cold_start, 6)} if cold_start > 0 else {}
        return self.transition(
            Status.PROCESSING,
            started_at=now,
            attempt=self.attempt + 1,
            n=0,
            output=None,
            logs="",
            metrics=metrics,
            hardware=hardware,
        )

    def finished(self, status: Status, now: float, error: str | None = None) -> Prediction:
        """Return the record ended at ``now``, with the output, logs and metrics received so far."""
        metrics = dict(self.metrics)
        if self.started_at is not None:
            metrics.setdefault("predict_time", round(max(0.0, now - self.started_at), 6))
        metrics["total_time"] = round(now - self.created_at, 6)
        changes = {"error": error, "metrics": metrics, "output": self.plain_output}
        return self.transition(status, completed_at=now, **changes)

    @property
    def plain_output(self) -> Any:
        """The output as JSON data, with ``OutputItems`` converted to a list."""
        return list(self.output) if isinstance(self.output, OutputItems) else self.output

    def apply(self, event: Log | Output | Metric, n: int) -> Prediction:
        """Return the record after event number ``n``; an event that is already in the record changes nothing.

        Takes constant time on average, however long the output is.
        """
        if n <= self.n:
            return self
        match event:
            case Log(text):
                return self.evolve(logs=self.logs + text, n=n)
            case Output(values, append=True):
                return self.evolve(output=_items_of(self.output).extended(values), n=n)
            case Output(values):
                return self.evolve(output=values[0], n=n)
            case Metric(name, value):
                return self.evolve(metrics={**self.metrics, name: value}, n=n)


def new_id() -> str:
    """Return a new random prediction id: 26 characters with 130 random bits."""
    return _random_bytes(ID_LENGTH).translate(_CROCKFORD).decode()


def new_stream_token(*, files: bool = False) -> str:
    """Return a new secret token of 256 random bits for a stream URL.

    With ``files`` the token starts with ``FILE_STREAM``. Replicate's JavaScript client recognizes streams of
    files by this prefix in the URL.
    """
    return (FILE_STREAM if files else "") + _random_bytes(32).hex()


class _RandomPool:
    """Random bytes of the operating system, of which one system call gives enough for many predictions."""

    def __init__(self) -> None:
        self._refill()
        os.register_at_fork(after_in_child=self._refill)  # two processes must not use the same bytes

    def _refill(self) -> None:
        self._bytes = os.urandom(4096)
        self._used = 0

    def take(self, count: int) -> bytes:
        """Return ``count`` bytes that were not returned before; at most 4,096."""
        if self._used + count > len(self._bytes):
            self._refill()
        self._used += count
        return self._bytes[self._used - count : self._used]


_random_bytes: Final = _RandomPool().take
