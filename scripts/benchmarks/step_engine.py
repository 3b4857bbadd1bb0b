"""A stand-in for an inference engine: emits tokens in a fixed rhythm, each with the time when it was emitted.

The tokens begin their way in a thread, as the tokens of a real engine begin theirs in another process. From
there on, every part is the appliance's own: the event loop of the worker process, the gateway and its event
streams. Each token is the value of ``time.monotonic_ns()`` when it was emitted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, Final

MODULE: Final = "appliance.runners.echo.runner"
#: Value of the input ``text`` that emits one token for each stream at once in every step, as for one batch.
TOGETHER: Final = "together"
#: Value of the input ``text`` that spreads the tokens of different streams evenly over a step.
SPREAD: Final = "spread"


class _Stream:
    """The tokens of one prediction that were not read yet."""

    def __init__(self, left: int) -> None:
        self.left = left  # tokens that the engine still emits
        self.emitted: list[int] = []
        self.ready = asyncio.Event()


class Engine:
    """Emits a token for each stream in every ``interval`` seconds, from a thread of its own."""

    def __init__(self, interval: float, *, spread: bool) -> None:
        self._interval = interval
        self._spread = spread
        self._loop = asyncio.get_running_loop()
        self._streams: list[_Stream] = []
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def add(self, tokens: int) -> _Stream:
        stream = _Stream(tokens)
        self._streams = [*self._streams, stream]  # the thread may read the old list
        return stream

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            due += self._interval
            streams = self._streams
            groups = [[stream] for stream in streams] if self._spread and streams else [streams]
            for number, group in enumerate(groups):
                begin = due + self._interval * number / len(groups)
                time.sleep(max(0.0, begin - time.monotonic()))
                try:
                    self._loop.call_soon_threadsafe(self._deliver, group, time.monotonic_ns())
                except RuntimeError:  # the event loop is closed
                    return

    def _deliver(self, streams: list[_Stream], now: int) -> None:
        for stream in streams:
            if stream.left == 0:  # it ended after the thread had read the list
                continue
            stream.left -= 1
            stream.emitted.append(now)
            stream.ready.set()
            if stream.left == 0:
                self._streams = [each for each in self._streams if each is not stream]


_engines: dict[tuple[float, bool], Engine] = {}


def change(module: ModuleType) -> None:
    """Let the echo model answer the inputs TOGETHER and SPREAD with the tokens of an ``Engine``.

    The input ``chunk_delay`` is the time of a step in seconds; ``repeat`` is the number of tokens.
    """
    texts = module.EchoRunner._texts  # noqa: SLF001 - the benchmark replaces it

    async def engine_texts(self: Any, input: dict[str, Any]) -> AsyncIterator[Any]:
        if input["text"] not in {TOGETHER, SPREAD}:
            async for output in texts(self, input):
                yield output
            return
        key = input["chunk_delay"], input["text"] == SPREAD
        if key not in _engines:
            _engines[key] = Engine(key[0], spread=key[1])
        left = input["repeat"]
        stream = _engines[key].add(left)
        while left:
            await stream.ready.wait()
            stream.ready.clear()
            tokens, stream.emitted = stream.emitted, []
            left -= len(tokens)
            yield module.Output(["".join(f"{token} " for token in tokens)])

    module.EchoRunner._texts = engine_texts  # noqa: SLF001 - as above
