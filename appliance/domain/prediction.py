"""The record of one prediction, the moves its status may make, and the events that change it.

Pure: no clock is read and nothing is stored here. ``Prediction`` is frozen; every change makes a new
record. Only ``appliance.engine`` asks for changes, and only ``appliance.store`` keeps them.
"""

from __future__ import annotations

import base64
import secrets
from enum import StrEnum
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

#: Crockford's alphabet without i, l, o, u, as in the ids that Replicate hands out (replicate-api 3.1).
_CROCKFORD: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")
ID_LENGTH: Final = 26
FILE_STREAM: Final = "files-"  # begins the tokens of streams of files


class Status(StrEnum):
    """Where a prediction stands; the values are the strings stored and served."""

    STARTING = "starting"  # accepted and committed: queued, or its model is being loaded
    PROCESSING = "processing"  # handed to an engine host
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # `error` says why
    CANCELED = "canceled"  # by the caller, or by a deadline while running
    ABORTED = "aborted"  # a deadline passed before it started (only with Cancel-After)

    @property
    def terminal(self) -> bool:
        """Whether no further move is possible."""
        return self in TERMINAL


TERMINAL: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED})

WEBHOOK_EVENTS: Final = ("start", "output", "logs", "completed")

#: status -> the statuses it may move to. `processing -> starting` is a re-queue after a lost host.
MOVES: Final[dict[Status, frozenset[Status]]] = {
    Status.STARTING: frozenset({Status.PROCESSING, Status.FAILED, Status.CANCELED, Status.ABORTED}),
    Status.PROCESSING: frozenset({Status.STARTING, Status.SUCCEEDED, Status.FAILED, Status.CANCELED}),
    **{status: frozenset() for status in TERMINAL},
}


class Log(msgspec.Struct, frozen=True, tag="log"):
    """Text the model wrote to its output streams; newline-separated, may be part of a line."""

    text: str


class Output(msgspec.Struct, frozen=True, tag="output"):
    """Output of the model.

    With ``append`` the values are further items of an iterator output (a few tokens travel together);
    without it ``values`` holds exactly one item, the whole output.
    """

    values: list[Any]
    append: bool = True


class Metric(msgspec.Struct, frozen=True, tag="metric"):
    """A number or text measured about this prediction; a later value of the same name replaces it."""

    name: str
    value: Any


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The last event of a run; exactly one is sent. ``error`` is set only with ``failed``."""

    status: Literal["succeeded", "failed", "canceled"]
    error: str | None = None


Event = Log | Output | Metric | Done


class Emitted(msgspec.Struct, frozen=True, array_like=True):
    """One event on its way from an engine host to the engine.

    ``n`` counts the events of one attempt from 1 without gaps, so a re-attached engine can tell which
    it has already applied.
    """

    id: str
    attempt: int
    n: int
    event: Event


class Job(msgspec.Struct, frozen=True):
    """One run of one prediction, as handed to an engine host: the input is validated and complete."""

    id: str
    attempt: int
    input: dict[str, Any]  # files are absolute paths on this machine
    folder: str = ""  # absolute path for files that the run makes; created when the first one is
    adapter: str | None = None  # absolute path of the folder with the weights that a training made
    inline: int = -1  # files of up to so many bytes are put into the output as data: URLs
    token: str | None = None  # acts for the prediction's owner while it runs; for models that call others
    operation: str | None = None  # see `Prediction`


class Webhook(msgspec.Struct, frozen=True):
    """Where events of a prediction are sent."""

    url: str
    events: tuple[str, ...]  # of WEBHOOK_EVENTS
    origin: str  # of the request that asked for it; addresses in what is sent begin with it

    @property
    def host(self) -> str:
        """The host name or IP address in ``url``; empty if it has none."""
        try:
            return urlsplit(self.url).hostname or ""
        except ValueError:
            return ""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One request and all that is known of it. Times are Unix seconds, UTC."""

    id: str
    model: str  # owner/name as configured, also when the caller used an alias
    version: str  # 64 hex digits
    owner: str  # account that made it
    input: dict[str, Any]  # exactly the keys the caller gave, verbatim
    status: Status = Status.STARTING
    output: Any = None
    logs: str = ""
    error: str | None = None
    metrics: dict[str, Any] = {}
    source: str = "api"
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    deadline: float | None = None  # from Cancel-After
    stream_token: str  # unguessable part of urls.stream
    attempt: int = 0  # runs begun so far; 1 while the first is under way
    n: int = 0  # last event of this attempt that is applied
    data_removed: bool = False
    webhook: Webhook | None = None
    deployment: str | None = None  # owner/name, if it was made through one
    destination: str | None = None  # of a training: the model that gets the new version
    parent: str | None = None  # the prediction that asked for this one while it ran
    # What is asked for, where that is not the model's own prediction: one of `runners.operations`. `input` is
    # then a request of another API, and `output` the answer to it, or the parts of its stream.
    operation: str | None = None
    token: str | None = None  # id of the token that asked for it; of a part, the one that asked for the whole
    hardware: str | None = None  # SKU of what it last ran on
    trace: str | None = (
        None  # the W3C traceparent of the request that asked for it, where requests are traced
    )

    def __str__(self) -> str:
        """For logs: the id, and what it is a part of."""
        return self.id if self.parent is None else f"{self.id} (part of {self.parent})"

    @property
    def about(self) -> dict[str, str]:
        """For logs: what a record is about that names it."""
        return {"prediction": self.id, "model": self.model}

    def evolve(self, **changes: Any) -> Prediction:
        """A copy with ``changes`` applied."""
        return msgspec.structs.replace(self, **changes)

    def move(self, status: Status, **changes: Any) -> Prediction:
        """A copy in ``status``.

        Raises:
            ValueError: the move is not in ``MOVES``.
        """
        if status not in MOVES[self.status]:
            raise ValueError(f"prediction {self.id}: {self.status} cannot become {status}")
        return self.evolve(status=status, **changes)

    def started(self, now: float, cold_start: float = 0.0, hardware: str | None = None) -> Prediction:
        """Claimed for a run: processing, next attempt, nothing applied yet.

        ``cold_start`` is how many seconds it waited for its model to be loaded, ``hardware`` the SKU of what
        that is loaded on.
        """
        metrics = {"cold_start": round(cold_start, 6)} if cold_start > 0 else {}
        return self.move(
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
        """Terminal at ``now``; output, logs and metrics so far are kept."""
        metrics = dict(self.metrics)
        if self.started_at is not None:
            metrics.setdefault("predict_time", round(max(0.0, now - self.started_at), 6))
        metrics["total_time"] = round(now - self.created_at, 6)
        return self.move(status, completed_at=now, error=error, metrics=metrics)

    def apply(self, event: Log | Output | Metric, n: int) -> Prediction:
        """The record after event number ``n``; a number already applied changes nothing."""
        if n <= self.n:
            return self
        match event:
            case Log(text):
                return self.evolve(logs=self.logs + text, n=n)
            case Output(values, append=True):
                before = self.output if isinstance(self.output, list) else []
                return self.evolve(output=[*before, *values], n=n)
            case Output(values):
                return self.evolve(output=values[0], n=n)
            case Metric(name, value):
                return self.evolve(metrics={**self.metrics, name: value}, n=n)


def new_id() -> str:
    """A fresh id: 26 characters, 128 bits and more of randomness."""
    return base64.b32encode(secrets.token_bytes(17))[:ID_LENGTH].translate(_CROCKFORD).decode()


def new_stream_token(*, files: bool = False) -> str:
    """A fresh capability for a stream URL: 256 bits, safe in a path.

    With ``files`` it is one for a stream of files, which has another address: a client looks at that.
    """
    return (FILE_STREAM if files else "") + secrets.token_hex(32)
