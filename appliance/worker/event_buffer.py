"""Events that a runner replica keeps until the gateway has stored the prediction they belong to. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from appliance.domain.prediction import Job
from appliance.worker.protocol import RelayedEvent

_log = logging.getLogger(__name__)

KEEP_SECONDS: Final = 600.0  # how long a finished prediction is kept for a gateway that may come back
KEEP_BYTES: Final = 256 * 1024 * 1024  # encoded events of all finished predictions together


class _Held:
    """One attempt of one prediction, and all it has emitted."""

    __slots__ = ("attempt", "events")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.events: list[RelayedEvent] = []


class _Finished:
    """When a held prediction ended, and how much it holds."""

    __slots__ = ("at", "size")

    def __init__(self, at: float, size: int) -> None:
        self.at = at
        self.size = size


class EventBuffer:
    """What was begun and is not acknowledged, in the order it was begun. Times are monotonic seconds."""

    def __init__(self, *, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
        """The limits are for finished predictions; a running one is always kept whole."""
        self._keep_seconds = keep_seconds
        self._keep_bytes = keep_bytes
        self._held: dict[str, _Held] = {}
        self._finished: dict[str, _Finished] = {}  # in the order they ended
        self._bytes = 0

    @property
    def ids(self) -> list[str]:
        """Every prediction held."""
        return list(self._held)

    @property
    def running(self) -> list[str]:
        """Those of them that have not ended."""
        return [id for id in self._held if id not in self._finished]

    def admit(self, jobs: Iterable[Job]) -> list[Job]:
        """Hold ``jobs`` from now on; returns those that are new. A new attempt takes the place of the old."""
        fresh = []
        for job in jobs:
            held = self._held.get(job.id)
            if held is not None and held.attempt >= job.attempt:
                continue
            self._forget(job.id)
            self._held[job.id] = _Held(job.attempt)
            fresh.append(job)
        return fresh

    def record(self, events: Iterable[RelayedEvent], now: float) -> list[RelayedEvent]:
        """Keep ``events``; returns those of predictions that are held, to be passed on."""
        kept = []
        for emitted in events:
            held = self._held.get(emitted.id)
            if held is None or held.attempt != emitted.attempt:
                continue
            # A decoded `Raw` keeps the whole message that it came in alive; a copy keeps the event alone.
            own = RelayedEvent(emitted.id, emitted.attempt, emitted.n, emitted.event.copy())
            held.events.append(own)
            kept.append(own)
            if own.is_last:
                self._finish(emitted.id, held, now)
        return kept

    def acknowledge(self, ids: Iterable[str]) -> None:
        """The gateway has stored how these ended, or does not want to know; one that runs stays held."""
        for id in ids:
            if id in self._finished:
                self._forget(id)

    def forget_running(self) -> None:
        """The worker process is gone: what had not ended there never will."""
        for id in self.running:
            self._forget(id)

    def events(self) -> list[RelayedEvent]:
        """Everything held, each prediction's events in order."""
        return [emitted for held in self._held.values() for emitted in held.events]

    def _finish(self, id: str, held: _Held, now: float) -> None:
        size = sum(memoryview(relayed.event).nbytes for relayed in held.events)
        self._finished[id] = _Finished(now, size)
        self._bytes += size
        while True:
            oldest = next(iter(self._finished))
            if self._bytes <= self._keep_bytes and self._finished[oldest].at >= now - self._keep_seconds:
                return
            if oldest == id:
                return
            _log.warning("prediction %s was never acknowledged; its events are dropped", oldest)
            self._forget(oldest)

    def _forget(self, id: str) -> None:
        self._held.pop(id, None)
        finished = self._finished.pop(id, None)
        if finished is not None:
            self._bytes -= finished.size
