"""What the engine, the API and the CLI may ask of a store, whichever database is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypedDict, Unpack

import msgspec

from appliance.domain.prediction import Log, Metric, Output, Prediction, Status
from appliance.domain.token import Token

if TYPE_CHECKING:
    from appliance.store.files import FileTable
    from appliance.store.footprints import FootprintTable
    from appliance.store.registry import Registry
    from appliance.store.usage import UsageTable

RETRY_STORE: Final = 1.0  # seconds before a refused write that must be made is tried again

#: What may be appended: ``Done`` is not, it becomes a status with ``finish``.
Progress = Log | Output | Metric

# Named here because the method ``list`` hides the builtin inside a store's class body.
Predictions = list[Prediction]
Tokens = list[Token]
Keys = list[str]
Ids = list[str]


class Receiver(NamedTuple):
    """An owner and the host that receives the owner's requests."""

    owner: str
    host: str


class Cursor(NamedTuple):
    """A place in a list sorted by ``(created_at, id)``, and the direction to read on from it.

    The record at the place itself is not part of the page. Forwards means older, ``backwards`` newer.
    """

    created_at: float
    id: str
    backwards: bool = False


class Filter(TypedDict, total=False):
    """Which predictions of a list are meant; what is not given, or None, is not looked at.

    ``created_after`` is inclusive, ``created_before`` exclusive, both Unix seconds. Without ``training`` only
    predictions are listed, with True only trainings, with None both.
    """

    model: str | None
    status: Status | None
    source: str | None
    training: bool | None
    parent: str | None
    token: str | None  # its id
    created_after: float | None
    created_before: float | None


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A version that some model has or had. ``created_at`` is when it was first seen, Unix seconds."""

    id: str  # 64 hex digits
    model: str  # owner/name; several models may share a version id
    created_at: float
    document: dict[str, Any]  # the OpenAPI document, as served


Versions = list[VersionRow]


class Delivery(NamedTuple):
    """The last webhook of a finished prediction: still to be delivered, or over. Times are Unix seconds."""

    id: str  # of the message, the same at every attempt
    prediction: str
    attempts: int  # that have failed
    due_at: float  # the next attempt, or the last one if it is over
    problem: str | None = None  # why the last attempt failed
    ended_at: float | None = None  # delivered, or given up if there is a problem
    receiver: Receiver = Receiver("", "")


Deliveries = list[Delivery]


class Store(Protocol):
    """Predictions, versions, tokens and counters; accepted means committed.

    Writes return a future at once. They take effect in the order of the calls, awaited or not: a ``finish``
    called after an ``append`` commits with it or later, never before. The future is done after the commit;
    cancelling it does not take the write back. Await it or let it be (asyncio logs the error of one that was
    let be); it is no coroutine, so ``create_task`` does not take it. A write that fails fails alone, with
    ``StoreError`` (an id that exists, a full disk) or its subclasses ``UnstorableValue`` (the value is at
    fault) and ``StatusConflict``. What is handed over must not be changed afterwards.

    All methods belong to the event loop that called ``open``.
    """

    files: FileTable
    footprints: FootprintTable
    registry: Registry
    usage: UsageTable

    async def open(self) -> None:
        """Make the database ready, creating or upgrading it.

        Raises:
            StoreError: it is damaged, newer than this code, or cannot be reached; the text names it.
        """

    async def own(self, patience: float = 0.0) -> None:
        """Become the one process that may run predictions from this database, until ``close`` or death.

        Waits up to ``patience`` seconds for another owner to go. Reading and token writes need no ownership.

        Raises:
            StoreError: another process owns it; the text names its pid.
        """

    async def close(self) -> None:
        """Commit what was queued, then let go of the database. Later calls raise StoreError."""

    def check(self) -> asyncio.Future[None]:
        """Write something; done when it is committed, StoreError if that is not possible now."""
        ...

    def create(self, prediction: Prediction) -> asyncio.Future[None]:
        """Store a new prediction, and count it for its model.

        Raises:
            ValueError: its status is not ``starting``.
        """
        ...

    def claim(self, prediction: Prediction) -> asyncio.Future[None]:
        """Move ``starting -> processing``; ``prediction.attempt`` must be one more than the stored one.

        Raises:
            ValueError: its status is not ``processing``.
        """
        ...

    def requeue(self, prediction: Prediction) -> asyncio.Future[None]:
        """Move ``processing -> starting`` and drop the events of the attempt.

        Raises:
            ValueError: its status is not ``starting``.
        """
        ...

    def finish(self, prediction: Prediction) -> asyncio.Future[None]:
        """Write the whole terminal record, once, and delete its events in the same transaction.

        What it took is added to the usage in the same transaction, and a webhook that wants to hear of the
        end is due from it on.

        Refused with StatusConflict when the stored prediction is terminal, or ``MOVES`` does not lead from
        its status to this one. Attempts are not compared: a cancel may be decided before a queued ``claim``.

        Raises:
            ValueError: its status is not terminal.
        """
        ...

    def append(self, id: str, attempt: int, events: Sequence[tuple[int, Progress]]) -> asyncio.Future[None]:
        """Keep numbered events of a running attempt; a number stored before is left as it is.

        Refused with StatusConflict when that attempt of the prediction is not ``processing``.
        """
        ...

    async def get(self, id: str) -> Prediction | None:
        """The prediction, with the events of its current attempt applied."""

    async def by_stream_token(self, token: str) -> Prediction | None:
        """The prediction whose stream URL carries ``token``, as from ``get``."""

    async def list(
        self,
        owner: str | None,
        *,
        cursor: Cursor | None = None,
        limit: int = 100,
        **filters: Unpack[Filter],
    ) -> Predictions:
        """A page of the owner's predictions, or of everyone's, newest first by ``(created_at, id)``.

        Running ones are as last written by ``claim``, without their events.
        """
        ...

    async def parts(self, parent: str) -> Ids:
        """The ids of what a prediction has asked for while it ran, oldest first."""
        ...

    async def unfinished(self) -> Predictions:
        """Every prediction that is not terminal, oldest first, as from ``get``."""
        ...

    async def run_counts(self) -> dict[str, int]:
        """How many predictions each model has been asked for, ever."""
        ...

    def record_version(self, row: VersionRow) -> asyncio.Future[VersionRow]:
        """Store a version, or only its document if it is known. The result has the first ``created_at``."""
        ...

    def forget_versions(self, model: str, served: str) -> asyncio.Future[None]:
        """Forget the versions of ``model`` that are neither ``served`` nor named by any prediction."""
        ...

    async def versions(self, model: str) -> Versions:
        """All versions the model ever had, newest first."""
        ...

    async def version(self, id: str, model: str | None = None) -> VersionRow | None:
        """One version of ``model``, or of whichever model had it first."""

    def add_token(self, token: Token) -> asyncio.Future[None]:
        """Store a token; its secret is not part of it."""
        ...

    async def find_token(self, digest: str) -> Token | None:
        """The token with this digest; None also when it is revoked."""

    async def list_tokens(self) -> Tokens:
        """Every token, revoked ones too, oldest first."""
        ...

    def revoke_token(self, id: str) -> asyncio.Future[Token | None]:
        """Revoke a token now and return it; None when there is none. A second time changes nothing."""
        ...

    def remove_data(self, before: float, limit: int) -> asyncio.Future[Ids]:
        """Remove input, output and logs of up to ``limit`` predictions that ended before then (Unix seconds).

        Examples keep theirs. Gives the ids; what is known of their files is gone too, so the bytes of those
        can be removed. The space in the database is given back to the disk.
        """
        ...

    def remove_files_over(self, limit: int, batch: int) -> asyncio.Future[Ids]:
        """Remove data of the oldest predictions until the files of all outputs are within ``limit`` bytes.

        Of up to ``batch`` of them; otherwise as ``remove_data``.
        """
        ...

    def remove_version(self, id: str, model: str) -> asyncio.Future[Ids]:
        """Remove a version with its predictions; gives their ids."""
        ...

    async def due_deliveries(self, now: float, each: int) -> Deliveries:
        """Deliveries due at ``now``, at most ``each`` for a receiver, longest due first."""
        ...

    async def next_delivery(self) -> float | None:
        """Unix time at which the next delivery is due; None if there is none."""

    def postpone_delivery(self, id: str, attempts: int, due_at: float, problem: str) -> asyncio.Future[None]:
        """Store that a delivery failed ``attempts`` times, last with ``problem``; next due at ``due_at``."""
        ...

    def end_delivery(self, id: str, problem: str | None = None) -> asyncio.Future[None]:
        """Store that a delivery succeeded, or was given up because of ``problem``."""
        ...

    async def deliveries(self, prediction: str) -> Deliveries:
        """Finished and pending deliveries of a prediction."""
        ...

    async def webhook_keys(self, owner: str, now: float) -> Keys:
        """The keys that sign the owner's webhooks, newest first; an old key stays valid for a while."""
        ...

    def add_webhook_key(self, owner: str, key: str, now: float, keep: float) -> asyncio.Future[None]:
        """Add a key for the owner's webhooks; the owner's other keys expire ``keep`` seconds later."""
        ...

    def add_first_webhook_key(self, owner: str, key: str, now: float) -> asyncio.Future[None]:
        """Add a key for the owner's webhooks, unless the owner has a valid key."""
        ...

    def claim_webhook_keys(self, owner: str) -> asyncio.Future[None]:
        """Give ``owner`` the keys of earlier versions, which had one key for all owners."""
        ...
