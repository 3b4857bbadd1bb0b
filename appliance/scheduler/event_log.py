"""The last changes of models' states and memory, for the log, the metrics and ``GET /admin/residency``."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

import msgspec

from appliance.domain.units import readable_bytes

KEPT: Final = 200  # events


class EventKind(StrEnum):
    """Kinds of events. The values are part of the HTTP API, and are label values of metrics."""

    LOAD = "load"  # the load begins, and its memory is reserved
    READY = "ready"  # the model is loaded; seconds: duration of the load
    FAILED = "failed"  # the load failed; seconds: until the failure was known
    DRAIN = "drain"  # the model takes no new predictions
    SLEEP = "sleep"  # the model begins to fall asleep; seconds: since it became ready
    ASLEEP = "asleep"  # its weights have left the devices; seconds: duration of that; memory: freed bytes
    WAKE = "wake"  # the model begins to wake, and its memory is reserved again
    WOKEN = "woken"  # the model is ready again; seconds: duration of waking
    UNLOAD = "unload"  # its worker process is being stopped; seconds: since it became ready or fell asleep
    UNLOADED = "unloaded"  # its memory is free; seconds: duration of the unload
    LOST = "lost"  # its worker process died; its memory is free
    OUT_OF_MEMORY = "starved"  # its worker process ran out of memory; memory: bytes that it used
    RESIZED = "resized"  # its reservation was changed after a measurement; memory: the new reservation
    EXCEEDS = "exceeds"  # it uses more than models.yaml declares; memory: bytes that it uses
    FOREIGN = "foreign"  # the use by other programs changed; memory: bytes that they use
    ADOPTED = "adopted"  # an earlier gateway process left the model loaded


class Event(msgspec.Struct, frozen=True):
    """One change of a model's state or memory, or of the memory that other programs use."""

    number: int  # from 1, without gaps
    at: float  # seconds on the scheduler's clock
    kind: EventKind
    model: str
    devices: tuple[str, ...]
    memory: int  # reserved bytes on each of the devices, unless ``EventKind`` says otherwise
    reason: str = ""
    on_behalf_of: str | None = None  # the model that the memory is freed for
    seconds: float | None = None
    idle: float | None = (
        None  # seconds since its last prediction, of a model that is unloaded or falls asleep
    )

    @property
    def about(self) -> dict[str, str]:
        return {"model": self.model}

    def __str__(self) -> str:
        return _LINES[self.kind].format(
            model=self.model,
            where=",".join(self.devices),
            memory=readable_bytes(self.memory),
            seconds=f"{self.seconds or 0.0:.1f} s",
            reason=f": {self.reason}" if self.reason else "",
        )


_LINES: Final = {
    EventKind.LOAD: "loading model {model} on {where} ({memory} reserved){reason}",
    EventKind.READY: "model {model} is ready after {seconds} of loading",
    EventKind.FAILED: "model {model} failed to load after {seconds}{reason}",
    EventKind.DRAIN: "draining model {model}{reason}",
    EventKind.SLEEP: "putting model {model} to sleep, {seconds} after it became ready{reason}",
    EventKind.ASLEEP: "model {model} fell asleep in {seconds} and freed {memory} on {where}",
    EventKind.WAKE: "waking model {model} on {where} ({memory} reserved){reason}",
    EventKind.WOKEN: "model {model} is ready after {seconds} of waking",
    EventKind.UNLOAD: "unloading model {model}, {seconds} after it became ready or fell asleep{reason}",
    EventKind.UNLOADED: "model {model} was unloaded in {seconds} and freed {memory} on {where}",
    EventKind.LOST: "the worker process of model {model} on {where} ended unexpectedly{reason}",
    EventKind.OUT_OF_MEMORY: "out of memory{reason}",  # the reason names the model
    EventKind.RESIZED: "model {model} now reserves {memory} on {where}{reason}",
    EventKind.EXCEEDS: "model {model} uses {memory} on {where}{reason}",
    EventKind.FOREIGN: "programs outside of the appliance use {memory} of {where}",
    EventKind.ADOPTED: "model {model} is still loaded on {where} from before the restart ({memory} reserved)",
}


class EventLog:
    """Holds the last ``KEPT`` events. Event numbers also count the dropped events."""

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
        idle: float | None = None,
    ) -> None:
        self._count += 1
        event = Event(self._count, at, kind, model, devices, memory, reason, on_behalf_of, seconds, idle)
        self._events.append(event)

    def since(self, number: int) -> list[Event]:
        """Return the kept events with a higher number, oldest first."""
        count = min(self._count - number, len(self._events))
        return [self._events[position] for position in range(len(self._events) - count, len(self._events))]
