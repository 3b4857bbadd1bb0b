"""The last changes of models' residency and memory, for the log, the metrics and ``GET /admin/residency``."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

import msgspec

from appliance.domain.units import readable_bytes

KEPT: Final = 200  # events


class EventKind(StrEnum):
    """The kinds of events. The values are part of the HTTP API and of the metrics' labels."""

    LOAD = "load"  # memory is reserved and the load begins
    READY = "ready"  # the model is loaded; seconds: duration of the load
    FAILED = "failed"  # the load failed; seconds: until the failure was known
    DRAIN = "drain"  # the model takes no new predictions
    SLEEP = "sleep"  # its weights begin to leave the devices; seconds: how long it was ready
    ASLEEP = "asleep"  # its weights have left the devices; seconds: duration; memory: freed bytes
    WAKE = "wake"  # device memory is reserved again, and its weights come back
    WOKEN = "woken"  # the model is ready again; seconds: duration of the waking
    UNLOAD = "unload"  # its worker process is being stopped; seconds: how long it was ready
    UNLOADED = "unloaded"  # its memory is free; seconds: duration of the unload
    LOST = "lost"  # its worker process died; its memory is free
    OUT_OF_MEMORY = "starved"  # its worker process ran out of memory; memory: bytes that it took
    RESIZED = "resized"  # its reservation follows a measurement; memory: bytes reserved from now on
    EXCEEDS = "exceeds"  # it takes more than models.yaml declares; memory: bytes that it takes
    FOREIGN = "foreign"  # other programs take more or less of a device; memory: bytes that they take
    ADOPTED = "adopted"  # an earlier gateway process left the model loaded


class Event(msgspec.Struct, frozen=True):
    """One change of a model's residency or memory."""

    number: int  # from 1, without gaps
    at: float  # seconds on the scheduler's clock
    kind: EventKind
    model: str
    devices: tuple[str, ...]
    memory: int  # bytes on each of the devices; reserved ones unless the kind says otherwise
    reason: str = ""
    on_behalf_of: str | None = None  # the model that gets the memory
    seconds: float | None = None

    @property
    def about(self) -> dict[str, str]:
        return {"model": self.model}

    def __str__(self) -> str:
        return _LINES[self.kind].format(
            model=self.model,
            where=",".join(self.devices),
            memory=readable_bytes(self.memory),
            after="" if self.seconds is None else f" after {self.seconds:.1f} s",
            reason=f": {self.reason}" if self.reason else "",
        )


_LINES: Final = {
    EventKind.LOAD: "loading model {model} on {where} with {memory}{reason}",
    EventKind.READY: "model {model} is ready{after}",
    EventKind.FAILED: "model {model} failed to load{after}{reason}",
    EventKind.DRAIN: "draining model {model}{reason}",
    EventKind.SLEEP: "putting model {model} to sleep{after}{reason}",
    EventKind.ASLEEP: "model {model} is asleep and has freed {memory} on {where}{after}",
    EventKind.WAKE: "waking model {model} on {where} with {memory}{reason}",
    EventKind.WOKEN: "model {model} is awake{after}",
    EventKind.UNLOAD: "unloading model {model}{after}{reason}",
    EventKind.UNLOADED: "model {model} is unloaded and has freed {memory} on {where}{after}",
    EventKind.LOST: "model {model} was lost on {where}{reason}",
    EventKind.OUT_OF_MEMORY: "model {model} ran out of memory{reason}",
    EventKind.RESIZED: "model {model} now reserves {memory} on {where}{reason}",
    EventKind.EXCEEDS: "model {model} takes {memory} on {where}{reason}",
    EventKind.FOREIGN: "other programs take {memory} of {where}",
    EventKind.ADOPTED: "model {model} is still loaded on {where} with {memory}",
}


class EventLog:
    """The last ``KEPT`` events. Numbers count all events that were ever added."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._count = 0

    def add(
        self,
        at: float,
        kind: EventKind,
        model: str,
        devices: tuple[str, ...],
        memory: int,
        *,
        reason: str = "",
        on_behalf_of: str | None = None,
        seconds: float | None = None,
    ) -> None:
        self._count += 1
        event = Event(self._count, at, kind, model, devices, memory, reason, on_behalf_of, seconds)
        self._events.append(event)

    def since(self, number: int) -> list[Event]:
        """Return the kept events with a higher number, oldest first."""
        count = min(self._count - number, len(self._events))
        return [self._events[position] for position in range(len(self._events) - count, len(self._events))]
