"""An unfinished prediction: its record, and its state that is kept in memory only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from appliance.config import LimitsConfig
from appliance.domain.errors import ApplianceError, PredictionFailed
from appliance.domain.prediction import Emitted, OutputItems, Prediction, Status
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.runners.adapters import AdaptableModel, unfetched
from appliance.store import Progress

_log = logging.getLogger(__name__)

#: Stored and shown in place of a secret input.
HIDDEN: Final = "**********"

#: Events of one attempt, with the numbers that the worker process assigned.
Events = list[tuple[int, Progress]]


def without_secrets(entry: ServedVersion, input: dict[str, Any]) -> dict[str, Any]:
    """Return ``input`` with every secret value replaced by ``HIDDEN``."""
    hidden = dict.fromkeys((name for name in entry.interface.secret_inputs if name in input), HIDDEN)
    return {**input, **hidden} if hidden else input


class Unwritten(NamedTuple):
    """A started prediction. Its start is written to the store later, together with its end."""

    claimed: Prediction
    model: str  # the instance that runs the prediction
    timer: asyncio.TimerHandle  # writes the start if the prediction has not ended by then


class ActivePrediction:
    """An unfinished prediction. Only ``Predictions`` and ``Saver`` change its state."""

    def __init__(self, prediction: Prediction, entry: ServedVersion, input: dict[str, Any]) -> None:
        """``input`` is the validated input, with every default filled in."""
        self.prediction = prediction
        self.entry = entry
        self.input = input
        self.created: asyncio.Future[None] | None = None  # the write that creates the record, once queued
        #: The caller waits for the end, so the first write may be delayed and joined with the last.
        self.awaits_end = False
        self.unwritten: Unwritten | None = None  # the start, while its write is delayed
        self.claimed = False  # the claim is being stored, or is stored
        self.attempt = prediction.attempt  # of the last claim that is stored
        #: The last attempt that was interrupted: its events are ignored. A prediction that waits for another
        #: attempt was interrupted in its last one.
        self.interrupted = prediction.attempt if prediction.status is Status.STARTING else 0
        self.early: list[Emitted] = []  # events of the next attempt, until its claim is stored
        self.ending = False  # the terminal record is being stored
        self.submitted = 0  # number of the attempt that was sent to a worker process; 0 for none
        self.fetched: asyncio.Task[dict[str, Any]] | None = None  # downloads the input files
        self.out_of_memory = False  # a worker process ran out of memory during a run of this prediction
        #: The worker process of its last run ended while other predictions ran in it: the next run is alone.
        self.alone = False
        self.timers: list[asyncio.TimerHandle] = []
        self.unsaved: Events = []  # shown, but not stored yet
        self.saving: asyncio.Future[None] | None = None  # the last write of this attempt's events
        self._waiting_for_change: set[asyncio.Future[bool]] = set()
        self._waiting_for_end: set[asyncio.Future[bool]] = set()

    @property
    def id(self) -> str:
        return self.prediction.id

    @property
    def iterates(self) -> bool:
        """Whether the output is a growing list; False for calls of the OpenAI and Anthropic APIs."""
        return self.entry.interface.iterates and self.prediction.operation is None

    @property
    def adapters(self) -> dict[str, str]:
        """The inputs that name an adapter to be fetched; inputs of other models may have the same names."""
        adapts = isinstance(self.entry.model, AdaptableModel) and not self.entry.interface.verbatim
        return unfetched(self.input) if adapts else {}

    @property
    def adapter_sources(self) -> tuple[str, ...]:
        """The sources of adapters that the model allows."""
        model = self.entry.model
        return model.adapter_sources if isinstance(model, AdaptableModel) else ()

    @property
    def has_files(self) -> bool:
        """Whether files are fetched before the prediction runs: input files, or an adapter."""
        interface = self.entry.interface
        if self.adapters:
            return True
        return self.entry.files_in and (
            interface.verbatim or any(self.input.get(name) is not None for name in interface.file_inputs)
        )

    @property
    def waits(self) -> bool:
        """Whether the prediction is queued: it has neither been started nor begun to end."""
        return self.prediction.status is Status.STARTING and not self.claimed and not self.ending

    def run_timeout(self, limits: LimitsConfig) -> tuple[float, str]:
        """Return the longest run in seconds, and the key of models.yaml that sets it."""
        own = self.entry.model.run_timeout
        if own is None or self.prediction.destination is not None:  # a training takes longer
            return limits.run_timeout, "limits.run_timeout"
        return own, f"run_timeout of model {self.entry.model.name}"

    def set_instance(self, instance: str) -> None:
        """Set the instance that runs the prediction; the scheduler may have moved the prediction there."""
        if instance != self.entry.runs_on:
            self.entry = msgspec.structs.replace(self.entry, runs_on=instance)

    def runs(self, claimed: Prediction) -> bool:
        """Return whether the attempt whose claim has the record ``claimed`` is still running."""
        return not self.ending and self.prediction is claimed

    def show(self, prediction: Prediction) -> None:
        """Replace the record, and wake the requests that wait for a change or for the end."""
        self.prediction = prediction
        _wake(self._waiting_for_change)
        if prediction.status.terminal:
            _wake(self._waiting_for_end)

    def refuse(self, error: ApplianceError) -> None:
        """Raise ``error`` in the requests that wait for the end of a prediction that could not be stored."""
        for future in self._waiting_for_end:
            if not future.done():
                future.set_exception(error)
        self._waiting_for_end.clear()

    def stop_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    async def changed(self, seconds: float) -> bool:
        """Return True at the next ``show``, or False after ``seconds`` without one."""
        return await _wait_in(self._waiting_for_change, seconds)

    async def ended(self, seconds: float | None = None) -> bool:
        """Return True once the terminal record is stored, or False after ``seconds``.

        Raises:
            StoreError: the prediction could not be created.
        """
        return self.prediction.status.terminal or await _wait_in(self._waiting_for_end, seconds)


async def _wait_in(waiting: set[asyncio.Future[bool]], seconds: float | None) -> bool:
    """Wait until ``_wake`` is called, or for ``seconds``; return whether it was called."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()
    waiting.add(future)
    timer = None if seconds is None else loop.call_later(seconds, _resolve, future, False)
    try:
        return await future
    finally:
        waiting.discard(future)
        if timer is not None:
            timer.cancel()


def _wake(waiting: set[asyncio.Future[bool]]) -> None:
    for future in waiting:
        _resolve(future, True)
    waiting.clear()


def _resolve(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


def items(prediction: Prediction, *, iterates: bool) -> Sequence[Any]:
    """Return the output as stream items: the items of an iterator, else the final output as one item."""
    output = prediction.output
    if iterates:
        return output if isinstance(output, list | OutputItems) else []
    return [output] if prediction.status.terminal and output is not None else []


#: Items of ``follow``: new items with their numbers from 1, None after ``idle`` seconds without a change,
#: and finally the terminal record.
Seen = list[tuple[int, Any]] | Prediction | None


async def follow(active: ActivePrediction, after: int, idle: float) -> AsyncIterator[Seen]:
    """Yield lists of new output items, from number ``after`` + 1 on, and at the end the terminal record.

    Yield None after every ``idle`` seconds in which the prediction did not change.
    """
    position = after
    while True:
        current = active.prediction
        present = items(current, iterates=active.entry.interface.iterates)
        if len(present) > position:
            yield list(enumerate(present[position:], position + 1))
            position = len(present)
        if current.status.terminal:
            yield current
            return
        if active.prediction is current and not await active.changed(idle):
            yield None


async def fetched_input(active: ActivePrediction) -> dict[str, Any]:
    """Return the input for the model, with a local path in place of each file URL.

    Raises:
        PredictionFailed: a file could not be downloaded, or the prediction ended during the download.
    """
    if active.fetched is None:
        return active.input
    try:
        return await asyncio.shield(active.fetched)
    except asyncio.CancelledError as error:
        if active.fetched.cancelled():
            raise PredictionFailed("the prediction ended while its input files were downloaded") from error
        raise
    except PredictionFailed:
        raise
    except Exception as error:  # else the prediction would hold its slot for ever
        _log.exception("the input files of prediction %s could not be fetched", active.prediction)
        raise PredictionFailed(f"the input files could not be fetched: {error}") from error
