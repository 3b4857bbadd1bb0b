"""What was decided about memory, and what came of it: the last of it, for people."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

import msgspec

KEPT: Final = 200  # happenings


class EventKind(StrEnum):
    """The kinds of happenings."""

    LOAD = "load"  # memory is reserved and the load begins
    READY = "ready"  # it is loaded; seconds: how long that took
    FAILED = "failed"  # it could not be loaded; seconds: until that was known
    DRAIN = "drain"  # it takes nothing new
    SLEEP = "sleep"  # its weights leave the device; seconds: how long it was ready
    ASLEEP = "asleep"  # they have left it; seconds: how long that took; memory: what is free now
    WAKE = "wake"  # the device is reserved again, and its weights come back
    WOKEN = "woken"  # it is ready; seconds: how long that took
    UNLOAD = "unload"  # its host is stopped; seconds: how long it was ready
    UNLOADED = "unloaded"  # its memory is free; seconds: how long that took
    LOST = "lost"  # its host died; its memory is free
    STARVED = "starved"  # its host ended for want of memory; memory: what it took
    RESIZED = "resized"  # it was measured, and holds more or less from now on; memory: what it holds
    EXCEEDS = "exceeds"  # it takes more than models.yaml says; memory: what it takes
    FOREIGN = "foreign"  # other programs take more or less of a device; memory: what they take
    ADOPTED = "adopted"  # an earlier gateway left it loaded


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, or what came of one."""

    number: int  # from 1, without gaps
    at: float  # seconds on the scheduler's clock
    what: EventKind
    model: str
    devices: tuple[str, ...]
    memory: int  # bytes on each of the devices that it concerns: reserved, or freed
    why: str = ""
    on_behalf_of: str | None = None  # the model that gets the room
    seconds: float | None = None

    @property
    def about(self) -> dict[str, str]:
        """For the log: what a record is about that names it."""
        return {"model": self.model}

    def __str__(self) -> str:
        """One line for the log."""
        return _LINES[self.what].format(
            model=self.model,
            where=",".join(self.devices),
            memory=self.memory,
            after="" if self.seconds is None else f" after {self.seconds:.1f} s",
            why=f": {self.why}" if self.why else "",
        )


_LINES: Final = {
    EventKind.LOAD: "model {model} is loaded on {where} with {memory} bytes{why}",
    EventKind.READY: "model {model} is ready{after}",
    EventKind.FAILED: "model {model} failed to load{after}{why}",
    EventKind.DRAIN: "model {model} is drained{why}",
    EventKind.SLEEP: "model {model} falls asleep{after}{why}",
    EventKind.ASLEEP: "model {model} is asleep and has freed {memory} bytes on {where}{after}",
    EventKind.WAKE: "model {model} is woken on {where} with {memory} bytes{why}",
    EventKind.WOKEN: "model {model} is awake{after}",
    EventKind.UNLOAD: "model {model} is unloaded{after}{why}",
    EventKind.UNLOADED: "model {model} has freed {memory} bytes on {where}{after}",
    EventKind.LOST: "model {model} is gone from {where}{why}",
    EventKind.STARVED: "model {model} ran out of memory{why}",
    EventKind.RESIZED: "model {model} holds {memory} bytes on {where}{why}",
    EventKind.EXCEEDS: "model {model} takes {memory} bytes on {where}{why}",
    EventKind.FOREIGN: "other programs take {memory} bytes on {where}",
    EventKind.ADOPTED: "model {model} is still loaded on {where} with {memory} bytes",
}


class EventLog:
    """A ring of happenings."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._count = 0

    def add(
        self,
        at: float,
        what: EventKind,
        model: str,
        devices: tuple[str, ...],
        memory: int,
        *,
        why: str = "",
        on_behalf_of: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """One more; the oldest goes."""
        self._count += 1
        self._ring.append(
            Event(
                number=self._count,
                at=at,
                what=what,
                model=model,
                devices=devices,
                memory=memory,
                why=why,
                on_behalf_of=on_behalf_of,
                seconds=seconds,
            )
        )

    @property
    def count(self) -> int:
        """How many there ever were: the number of the last."""
        return self._count

    def since(self, number: int) -> list[Event]:
        """Those after ``number`` that are still kept, oldest first."""
        missed = min(self._count - number, len(self._ring))
        return [self._ring[position] for position in range(len(self._ring) - missed, len(self._ring))]
