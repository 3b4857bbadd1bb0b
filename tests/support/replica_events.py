"""Read the events of a runner replica in this process, without its data socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from appliance.domain.engine_metrics import EngineMetrics
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.protocol import (
    PeakMemory,
    RelayedEvent,
    RelayedEvents,
    StreamEnd,
    ToGateway,
)
from appliance.worker.replica import Replica


async def events_of(replica: Replica) -> AsyncIterator[list[RelayedEvent] | EngineMetrics | MemoryUsage]:
    """Yield batches of events, engine metrics and memory peaks, until the stream ends.

    Raises:
        WorkerLost: the worker process was lost.
    """
    messages: asyncio.Queue[ToGateway] = asyncio.Queue()
    replica.attach(messages.put_nowait)
    try:
        while True:
            match await messages.get():
                case RelayedEvents(events):
                    yield events
                case EngineMetrics() as metrics:
                    yield metrics
                case PeakMemory(usage):
                    yield usage
                case StreamEnd(None):
                    return
                case StreamEnd(failure):
                    assert failure is not None
                    raise failure.as_error()
    finally:
        replica.detach(messages.put_nowait)
