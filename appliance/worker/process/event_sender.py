"""Numbers the events of predictions, merges them, and sends them to the runner replica in few messages.

The events of one iteration of the event loop share a message, which is sent in the next iteration. An
inference engine emits the tokens of one step in one iteration, so each step is one message. A model that
emits faster may send ``MESSAGES`` messages in each ``WINDOW``; its other events wait for the end of the
window, except for the first and the last event of a prediction. While events wait, consecutive outputs or log
texts of one prediction are merged into one event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from appliance.domain import file
from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Done, Emitted, Event, Job, Log, Output
from appliance.worker.protocol import DirectAttached, Events, encode

WINDOW: Final = 0.010  # seconds
MESSAGES: Final = 16  # at most in each ``WINDOW``, except for urgent events
MESSAGE_BYTES: Final = 64 * 1024  # queued events are sent at once when they have this size

_encoder: Final = msgspec.msgpack.Encoder(enc_hook=file.pack)


class EventSender:
    """The queue of the events of all predictions of one worker process."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """``write`` sends a message to the replica."""
        self._write = write
        self._write_to_gateway: Callable[[bytes], None] | None = None
        self._received: list[tuple[str, int]] = []
        self._loop = asyncio.get_running_loop()
        self._window_end = 0.0
        self._sent = 0  # messages in the current window
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received_timer: asyncio.TimerHandle | None = None
        self._paused = 0  # sockets whose buffer is full
        self._bytes = 0
        self.pending: list[Emitted] = []

    def add(self, emitted: Emitted, size: int, *, urgent: bool) -> None:
        """Queue one event of about ``size`` bytes; send it at once if ``urgent``."""
        self.pending.append(emitted)
        self.count(size)
        if urgent:
            self._flush_soon()
        elif self._timer is None and self._soon is None:
            now = self._loop.time()
            if now >= self._window_end:
                self._window_end, self._sent = now + WINDOW, 0
            if self._sent < MESSAGES:
                self._flush_soon()
            else:
                self._timer = self._loop.call_later(self._window_end - now, self._flush)

    def add_received(self, jobs: list[Job]) -> None:
        """Tell the replica, with the next message, that the gateway has sent these predictions."""
        self._received += [(job.id, job.attempt) for job in jobs]
        if self._received_timer is None:
            self._received_timer = self._loop.call_later(WINDOW, self._flush)

    def send_to_gateway(self, write: Callable[[bytes], None], token: str) -> None:
        """Send the following events to the gateway too, by ``write``, and tell the replica."""
        self._flush(even_if_paused=True)
        self._write(encode(DirectAttached(token)))
        self._write_to_gateway = write

    def stop_sending_to_gateway(self, write: Callable[[bytes], None]) -> None:
        """End ``send_to_gateway`` with this ``write``."""
        if self._write_to_gateway == write:
            self._write_to_gateway = None

    def count(self, size: int) -> None:
        """Add ``size`` bytes to the size of the pending events; send them at once if they are too large."""
        self._bytes += size
        if self._bytes >= MESSAGE_BYTES:
            self._flush_soon()

    def pause(self) -> None:
        """Send nothing until ``resume``, because the buffer of a socket is full."""
        self._paused += 1

    def resume(self) -> None:
        self._paused -= 1
        self._flush()

    def _flush_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._flush)

    def _flush(self, *, even_if_paused: bool = False) -> None:
        for handle in (self._soon, self._timer, self._received_timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = self._received_timer = None
        if (self._paused and not even_if_paused) or not (self.pending or self._received):
            return
        message = encode(Events(self.pending, self._received))
        if self._write_to_gateway is not None and self.pending:
            self._write_to_gateway(message)
        self.pending, self._received = [], []
        self._bytes = 0
        self._sent += 1
        self._write(message)


class EventStream:
    """Sends the events of one attempt of one prediction."""

    def __init__(self, job: Job, sender: EventSender) -> None:
        self._job = job
        self._sender = sender
        self._n = 0
        self._batch: list[Emitted] | None = None  # the list `pending` with the last event of this prediction
        self._index = -1  # the position of the last event in that list
        self.done = False

    def emit(self, event: Event) -> None:
        """Queue ``event``, to be sent within ``WINDOW``.

        Raises:
            PredictionFailed: the event contains a value that cannot be encoded.
        """
        size = _size(event)
        sender = self._sender
        if self._batch is sender.pending and self._merge(event):
            sender.count(size)
            return
        self._n += 1
        self.done = isinstance(event, Done)
        if type(event) is Output and event.append:
            event = Output(list(event.values))  # a copy, because ``_merge`` appends to it
        self._batch, self._index = sender.pending, len(sender.pending)
        emitted = Emitted(self._job.id, self._job.attempt, self._n, event)
        sender.add(emitted, size, urgent=self._n == 1 or self.done)

    def _merge(self, event: Event) -> bool:
        """Merge ``event`` into the last pending event of the prediction; return False if the types differ."""
        pending = self._sender.pending
        last = pending[self._index]
        match last.event, event:
            case Output(values, append=True), Output(more, append=True):
                values.extend(more)
            case Log(text), Log(more_text):
                pending[self._index] = Emitted(last.id, last.attempt, last.n, Log(text + more_text))
            case _:
                return False
        return True


def _size(event: Event) -> int:
    """Return the approximate size of the encoded event in bytes.

    Raises:
        PredictionFailed: the event cannot be encoded.
    """
    if type(event) is Output and len(event.values) == 1:
        value = event.values[0]
        if type(value) is str and value.isascii():  # the usual case, faster than encoding
            return 32 + len(value)
    try:
        return len(_encoder.encode(event))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PredictionFailed(f"the model returned a value that cannot be encoded: {error}") from error
