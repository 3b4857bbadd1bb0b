"""Events on their way out of a worker process: numbered, merged and sent a few at a time.

The first event of a prediction and its last leave at the end of the loop's current turn. What comes between
waits until ``INTERVAL`` has passed since the last frame, and consecutive output items or log texts of one
prediction become one event meanwhile. With one busy prediction that is a frame for every token; with many
it is one frame for all that a step of the engine yields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from appliance.domain import file
from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Done, Emitted, Event, Job, Log, Output
from appliance.worker.protocol import Events, encode

INTERVAL: Final = 0.010  # seconds between frames that nobody waits for
FRAME_BYTES: Final = 64 * 1024  # more than this leaves at once

_encoder: Final = msgspec.msgpack.Encoder(enc_hook=file.pack)


class EventSender:
    """The queue of events that one worker process sends."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """``write`` takes whole frames."""
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._bytes = 0
        self.pending: list[Emitted] = []

    def add(self, emitted: Emitted, size: int, *, urgent: bool) -> None:
        """Queue one event that takes about ``size`` bytes."""
        self.pending.append(emitted)
        self.grew(size)
        if urgent:
            self._flush_soon()
        elif self._timer is None and self._soon is None:
            delay = self._sent_at + INTERVAL - self._loop.time()
            if delay <= 0:
                self._flush_soon()
            else:
                self._timer = self._loop.call_later(delay, self._flush)

    def grew(self, size: int) -> None:
        """The pending events take ``size`` bytes more than before."""
        self._bytes += size
        if self._bytes >= FRAME_BYTES:
            self._flush_soon()

    def pause(self) -> None:
        """The socket is full: collect."""
        self._paused = True

    def resume(self) -> None:
        """The socket takes data again."""
        self._paused = False
        self._flush()

    def _flush_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._paused or not self.pending:
            return
        frame = encode(Events(self.pending))
        self.pending = []
        self._bytes = 0
        self._sent_at = self._loop.time()
        self._write(frame)


class EventStream:
    """The events of one run of one prediction."""

    def __init__(self, job: Job, outgoing: EventSender) -> None:
        """Nothing is sent yet."""
        self._job = job
        self._outgoing = outgoing
        self._n = 0
        self._batch: list[Emitted] | None = None  # the pending list that holds our last event
        self._index = -1  # its place there
        self.done = False

    def emit(self, event: Event) -> None:
        """Send ``event``, at the latest after ``INTERVAL``.

        Raises:
            PredictionFailed: the event holds a value that has no place in JSON.
        """
        size = _weigh(event)
        outgoing = self._outgoing
        if self._batch is outgoing.pending and self._merge(event):
            outgoing.grew(size)
            return
        self._n += 1
        self.done = isinstance(event, Done)
        if type(event) is Output and event.append:
            event = Output(list(event.values))  # ours: `_merge` adds to it
        self._batch, self._index = outgoing.pending, len(outgoing.pending)
        emitted = Emitted(self._job.id, self._job.attempt, self._n, event)
        outgoing.add(emitted, size, urgent=self._n == 1 or self.done)

    def _merge(self, event: Event) -> bool:
        """Join ``event`` to our last one, if that has not left yet and is of the same sort."""
        pending = self._outgoing.pending
        last = pending[self._index]
        match last.event, event:
            case Output(values, append=True), Output(more, append=True):
                values.extend(more)
            case Log(text), Log(more_text):
                pending[self._index] = Emitted(last.id, last.attempt, last.n, Log(text + more_text))
            case _:
                return False
        return True


def _weigh(event: Event) -> int:
    """About how many bytes the event takes in a frame; refuses what cannot be encoded."""
    if type(event) is Output and len(event.values) == 1:
        value = event.values[0]
        if type(value) is str and value.isascii():  # nearly all: no need to encode it twice
            return 32 + len(value)
    try:
        return len(_encoder.encode(event))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PredictionFailed(f"the model returned something that cannot be sent: {error}") from error
