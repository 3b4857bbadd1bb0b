"""Events that a runner replica keeps until the gateway has stored the end of their prediction. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from appliance.domain.prediction import Job
from appliance.worker.protocol import RelayedEvent

_log = logging.getLogger(__name__)

KEEP_SECONDS: Final = 600.0  # how long a finished prediction is kept for a restarted gateway
KEEP_BYTES: Final = 256 * 1024 * 1024  # encoded events of all finished predictions together


class _Attempt:
    """One attempt of one prediction, and all events that it has emitted."""

    __slots__ = ("events", "finished_at", "number", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.events: list[RelayedEvent] = []
        self.finished_at = 0.0
        self.size = 0  # bytes of encoded events, once it has finished


class EventBuffer:
    """Predictions that are not acknowledged yet, with their events. Times are monotonic seconds.

    The limits apply to finished predictions; all events of a running one are kept.
    """

    def __init__(self, *, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_seconds = keep_seconds
        self._keep_bytes = keep_bytes
        self._attempts: dict[str, _Attempt] = {}  # by prediction id, in the order they began
        self._finished: dict[str, _Attempt] = {}  # some of these, in the order they finished
        self._bytes = 0  # of finished attempts

    @property
    def ids(self) -> list[str]:
        """Ids of all predictions in the buffer."""
        return list(self._attempts)

    @property
    def running(self) -> list[str]:
        """Ids of the predictions that have not finished."""
        return [id for id in self._attempts if id not in self._finished]

    def admit(self, jobs: Iterable[Job]) -> list[Job]:
        """Add predictions; return the jobs that are new. A new attempt replaces the one before."""
        new = []
        for job in jobs:
            attempt = self._attempts.get(job.id)
            if attempt is not None and attempt.number >= job.attempt:
                continue
            self._forget(job.id)
            self._attempts[job.id] = _Attempt(job.attempt)
            new.append(job)
        return new

    def record(self, events: Iterable[RelayedEvent], now: float) -> list[RelayedEvent]:
        """Keep events; return those of predictions in the buffer, for the gateway."""
        kept = []
        for event in events:
            attempt = self._attempts.get(event.id)
            if attempt is None or attempt.number != event.attempt:
                continue
            # A decoded ``Raw`` keeps the whole message in memory; the copy is only as large as the event.
            own = RelayedEvent(event.id, event.attempt, event.n, event.event.copy())
            attempt.events.append(own)
            kept.append(own)
            if own.is_last:
                self._finish(event.id, attempt, now)
        return kept

    def acknowledge(self, ids: Iterable[str]) -> None:
        """Forget those of these predictions that have finished: the gateway needs their events no more."""
        for id in ids:
            if id in self._finished:
                self._forget(id)

    def forget_running(self) -> None:
        """Forget the running predictions, because their worker process has ended."""
        for id in self.running:
            self._forget(id)

    def events(self) -> list[RelayedEvent]:
        """Return all events, prediction by prediction, in order."""
        return [event for attempt in self._attempts.values() for event in attempt.events]

    def _finish(self, id: str, attempt: _Attempt, now: float) -> None:
        attempt.finished_at = now
        attempt.size = sum(memoryview(relayed.event).nbytes for relayed in attempt.events)
        self._finished[id] = attempt
        self._bytes += attempt.size
        while (oldest := next(iter(self._finished))) != id:  # the one that has just finished always stays
            expired = self._finished[oldest].finished_at < now - self._keep_seconds
            if not expired and self._bytes <= self._keep_bytes:
                break
            _log.warning("events of prediction %s are dropped: no gateway has acknowledged its end", oldest)
            self._forget(oldest)

    def _forget(self, id: str) -> None:
        self._attempts.pop(id, None)
        finished = self._finished.pop(id, None)
        if finished is not None:
            self._bytes -= finished.size
