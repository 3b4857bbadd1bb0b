"""One prediction that is not finished, with what only its running process needs to know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Prediction
from appliance.gateway.catalogue.catalogue import Entry
from appliance.store import Progress

_log = logging.getLogger(__name__)

#: What is stored and shown in place of a secret input.
HIDDEN: Final = "**********"

#: What a host has told of a prediction, with the numbers it gave them.
Events = list[tuple[int, Progress]]


def without_secrets(entry: Entry, input: dict[str, Any]) -> dict[str, Any]:
    """``input`` as it may be stored and shown."""
    hidden = dict.fromkeys((name for name in entry.interface.secret_inputs if name in input), HIDDEN)
    return {**input, **hidden} if hidden else input


class ActivePrediction:
    """A prediction under way. Only the engine writes; anyone may read ``prediction`` and wait for changes."""

    def __init__(self, prediction: Prediction, entry: Entry, input: dict[str, Any]) -> None:
        """``input`` is the validated input, with every default filled in."""
        self.prediction = prediction
        self.entry = entry
        self.input = input
        self.claimed = False  # a claim is on its way to the store, or was made
        self.ending = False  # a terminal record is on its way to the store
        self.submitted = False  # this attempt was handed to a host
        self.fetched: asyncio.Task[dict[str, Any]] | None = None  # the input, its files fetched
        self.parts: set[str] = set()  # ids of predictions that it asked for and that are not finished
        self.out_of_memory = False  # its host ran out of memory once while it ran
        self.timers: list[asyncio.TimerHandle] = []
        self.unsaved: Events = []
        self.saving: asyncio.Future[None] | None = None  # the last write of this attempt's events
        self._waiters: set[asyncio.Future[None]] = set()
        self._enders: set[asyncio.Future[None]] = set()

    @property
    def id(self) -> str:
        """The prediction's id."""
        return self.prediction.id

    @property
    def iterates(self) -> bool:
        """Whether the output is a growing list; not so for calls of the OpenAI and Anthropic APIs."""
        return self.entry.interface.iterates and self.prediction.operation is None

    def begins_on(self, instance: str) -> None:
        """It may not be the one that was chosen when it arrived."""
        if instance != self.entry.runs_on:
            self.entry = msgspec.structs.replace(self.entry, runs_on=instance)

    def runs(self, claimed: Prediction) -> bool:
        """Whether the attempt that began with this record goes on: it may have ended, or lost its host."""
        return not self.ending and self.prediction is claimed

    def show(self, prediction: Prediction) -> None:
        """Replace the record and wake everyone who waits for that."""
        self.prediction = prediction
        _wake(self._waiters)
        if prediction.status.terminal:
            _wake(self._enders)

    def stop_timers(self) -> None:
        """No deadline applies any more."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    async def changed(self, seconds: float) -> bool:
        """Return at the next ``show``, or False when there is none for so long."""
        try:
            async with asyncio.timeout(seconds):
                await _wait_in(self._waiters)
        except TimeoutError:
            return False
        return True

    async def ended(self) -> None:
        """Return once the terminal record is committed."""
        if not self.prediction.status.terminal:
            await _wait_in(self._enders)


async def _wait_in(waiters: set[asyncio.Future[None]]) -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.add(waiter)
    try:
        await waiter
    finally:
        waiters.discard(waiter)


def _wake(waiters: set[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


def items(prediction: Prediction, *, iterates: bool) -> list[Any]:
    """The output as a stream sees it: the items of an iterator, else the whole output once it is final."""
    if iterates:
        return prediction.output if isinstance(prediction.output, list) else []
    final = prediction.status.terminal and prediction.output is not None
    return [prediction.output] if final else []


#: What a follower sees: new items with their numbers from 1, None when nothing came for a while, and last of
#: all the terminal record.
Seen = list[tuple[int, Any]] | Prediction | None


async def follow(live: ActivePrediction, after: int, idle: float) -> AsyncIterator[Seen]:
    """Items with a number over ``after``, each once, as they come; None after ``idle`` seconds without."""
    position = after
    while True:
        current = live.prediction
        present = items(current, iterates=live.entry.interface.iterates)
        if len(present) > position:
            yield list(enumerate(present[position:], position + 1))
            position = len(present)
        if current.status.terminal:
            yield current
            return
        if live.prediction is current and not await live.changed(idle):
            yield None


async def fetched(live: ActivePrediction) -> dict[str, Any]:
    """The input as its model gets it.

    Raises:
        PredictionFailed: a file of it cannot be had, or its end has stopped that.
    """
    if live.fetched is None:
        return live.input
    try:
        return await asyncio.shield(live.fetched)
    except asyncio.CancelledError as error:
        if live.fetched.cancelled():
            raise PredictionFailed("the prediction ended while its input was fetched") from error
        raise
    except PredictionFailed:
        raise
    except Exception as error:  # whatever it is, the prediction must not wait for ever
        _log.exception("the input of prediction %s was not fetched", live.prediction)
        raise PredictionFailed(f"the input files could not be fetched: {error}") from error
