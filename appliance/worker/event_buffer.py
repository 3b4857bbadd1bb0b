"""Events that a runner replica keeps until the gateway has stored the end of the prediction. No I/O.

They are deleted when the model is unloaded, see ``Replica.unload``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from appliance.domain.units import readable_bytes
from appliance.worker.protocol import RelayedEvent

_log = logging.getLogger(__name__)

KEEP_SECONDS: Final = 600.0  # for which a finished prediction is kept for a restarted gateway
KEEP_BYTES: Final = 256 * 1024 * 1024  # of encoded events of all finished predictions together


class _Attempt:
    """One attempt of one prediction, and all its events so far."""

    __slots__ = ("acknowledged", "events", "finished_at", "number", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.events: list[RelayedEvent] = []
        self.acknowledged = False  # before its last event
        self.finished_at = 0.0
        self.size = 0  # bytes of encoded events, set when the attempt has finished


class EventBuffer:
    """Events of predictions whose end was not acknowledged. Times are monotonic seconds.

    The limits apply to finished predictions. All events of running predictions are kept.
    """

    def __init__(self, *, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_seconds = keep_seconds
        self._keep_bytes = keep_bytes
        self._attempts: dict[str, _Attempt] = {}  # by prediction id, in the order they began
        self._finished: dict[str, _Attempt] = {}  # the finished attempts, in the order they finished
        self._bytes = 0  # of finished attempts

    @property
    def ids(self) -> list[str]:
        return list(self._attempts)

    @property
    def running(self) -> list[str]:
        return [id for id in self._attempts if id not in self._finished]

    def admit(self, id: str, attempt: int) -> bool:
        """Add a prediction, and return whether it is new. A later attempt replaces an earlier one."""
        known = self._attempts.get(id)
        if known is not None and known.number >= attempt:
            return False
        self._forget(id)
        self._attempts[id] = _Attempt(attempt)
        return True

    def record(self, events: Iterable[RelayedEvent], now: float) -> list[RelayedEvent]:
        """Keep the events of predictions in the buffer, and return them; drop all other events."""
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
        """Delete predictions whose end the gateway has stored.

        A prediction that still runs is deleted when its last event arrives.
        """
        for id in ids:
            if id in self._finished:
                self._forget(id)
            elif (attempt := self._attempts.get(id)) is not None:
                attempt.acknowledged = True

    def clear(self) -> None:
        for id in self.ids:
            self._forget(id)

    def events(self) -> list[RelayedEvent]:
        """Return all events, grouped by prediction, in the order they were emitted."""
        return [event for attempt in self._attempts.values() for event in attempt.events]

    def _finish(self, id: str, attempt: _Attempt, now: float) -> None:
        if attempt.acknowledged:
            self._forget(id)
            return
        attempt.finished_at = now
        attempt.size = sum(memoryview(relayed.event).nbytes for relayed in attempt.events)
        self._finished[id] = attempt
        self._bytes += attempt.size
        while (oldest := next(iter(self._finished))) != id:  # always keep the newest
            expired = self._finished[oldest].finished_at < now - self._keep_seconds
            if not expired and self._bytes <= self._keep_bytes:
                break
            _log.warning(
                "dropped the events of prediction %s: the gateway has not acknowledged its end "
                " (limits: %.0f s, and %s for all finished predictions)",
                oldest,
                self._keep_seconds,
                readable_bytes(self._keep_bytes),
            )
            self._forget(oldest)

    def _forget(self, id: str) -> None:
        self._attempts.pop(id, None)
        finished = self._finished.pop(id, None)
        if finished is not None:
            self._bytes -= finished.size
