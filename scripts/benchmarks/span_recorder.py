"""Records when a prediction passes certain points of the code, in every process of a measured appliance.

Each process writes the times into a file of its own, mapped into memory, so that a record costs less than a
microsecond and survives any end of the process. The times are those of ``time.monotonic_ns()``, which all
processes of a machine share.
"""

from __future__ import annotations

import functools
import inspect
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

_RECORD: Final = struct.Struct("<QQ")  # index of the point, nanoseconds
_GATEWAY: Final = "appliance.gateway"
_WORKER: Final = "appliance.worker.process"
_SIZE: Final = 4 * 1024 * 1024  # bytes of a file; what does not fit is left out


class Point(NamedTuple):
    """A function, and whether its begin or its end is recorded.

    If a prediction passes the point several times, the first or the last time counts.
    """

    name: str
    module: str
    function: str  # qualified name within the module
    when: Literal["begin", "end"]
    counts: Literal["first", "last"]


#: In the order of a sync prediction of a loaded model.
POINTS: Final = (
    Point(
        "read from the client's socket",
        f"{_GATEWAY}.connections",
        "Connection.data_received",
        "begin",
        "first",
    ),
    Point("HTTP parsed", f"{_GATEWAY}.api.application", "Application._respond", "begin", "first"),
    Point("authenticated", f"{_GATEWAY}.api.requests", "caller", "end", "first"),
    Point("body decoded", f"{_GATEWAY}.api.requests", "parse", "end", "first"),
    Point("input validated", "appliance.domain.input_schema", "validate", "end", "first"),
    Point("scheduled", "appliance.cluster.ray", "RayCluster.submit", "begin", "first"),
    Point(
        "at the worker process",
        f"{_WORKER}.gateway_connection",
        "GatewayConnection.data_received",
        "begin",
        "first",
    ),
    Point("model called", "appliance.runners.echo.runner", "EchoRunner.run", "begin", "first"),
    Point("computed", f"{_WORKER}.event_sender", "EventStream.emit", "begin", "last"),
    Point("back at the gateway", f"{_GATEWAY}.engine.predictions", "Predictions.apply", "begin", "last"),
    Point("write queued", "appliance.store.writer", "Writer.put", "begin", "last"),
    Point("committed", "appliance.store.writer", "Writer._written", "begin", "last"),
    Point(
        "response written",
        f"{_GATEWAY}.connections",
        "Connection.on_response_complete",
        "begin",
        "last",
    ),
)


def modules() -> list[str]:
    return list(dict.fromkeys(point.module for point in POINTS))


def change_in(folder: Path) -> Callable[[ModuleType], None]:
    """Return a change for ``hooks`` that makes the points of a module record to files in ``folder``."""
    recorder = _Recorder(folder)

    def change(module: ModuleType) -> None:
        for index, point in enumerate(POINTS):
            if point.module == module.__name__:
                owner, name = find(module, point.function)
                setattr(owner, name, _recording(getattr(owner, name), point, partial_record(index)))

    def partial_record(index: int) -> Callable[[], None]:
        return functools.partial(recorder.record, index)

    return change


def find(module: ModuleType, function: str) -> tuple[Any, str]:
    """Return the module or class that has a function, and the function's name.

    Raises:
        AttributeError: there is no such function.
    """
    *classes, name = function.split(".")
    owner: Any = module
    for each in classes:
        owner = getattr(owner, each)
    getattr(owner, name)
    return owner, name


def read(folder: Path) -> list[tuple[int, int]]:
    """Return nanoseconds and the index of the point of all records in ``folder``, in the order of time."""
    return sorted(record for file in folder.iterdir() for record in _records(file.read_bytes()))


def _records(content: bytes) -> Iterator[tuple[int, int]]:
    for index, moment in _RECORD.iter_unpack(content):
        if not moment:
            return
        yield moment, index


def _recording(function: Any, point: Point, record: Callable[[], None]) -> Any:
    if point.when == "begin":

        @functools.wraps(function)
        def begin(*arguments: Any, **named: Any) -> Any:
            record()
            return function(*arguments, **named)

        return begin
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def end_of_coroutine(*arguments: Any, **named: Any) -> Any:
            result = await function(*arguments, **named)
            record()
            return result

        return end_of_coroutine

    @functools.wraps(function)
    def end(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        record()
        return result

    return end


class _Recorder:
    """Writes records to one file per process; a forked process opens its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._map: mmap.mmap | None = None
        self._at = 0
        os.register_at_fork(after_in_child=self._forget)

    def record(self, index: int) -> None:
        moment = time.monotonic_ns()
        if self._map is None:
            with (self._folder / f"{os.getpid()}-{id(self)}").open("w+b") as file:
                file.truncate(_SIZE)
                self._map = mmap.mmap(file.fileno(), _SIZE)
        if self._at < _SIZE:
            _RECORD.pack_into(self._map, self._at, index, moment)
            self._at += _RECORD.size

    def _forget(self) -> None:
        self._map, self._at = None, 0
