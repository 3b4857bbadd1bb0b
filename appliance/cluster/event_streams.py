"""The events of a loaded model, as a stream of messages from its replica and its worker process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from appliance.cluster.replicas import Link, Transfer
from appliance.cluster.runner_replica import data_socket_path
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import NodeLost, WorkerLost
from appliance.domain.prediction import Emitted
from appliance.worker import data_socket
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.protocol import Failure, PeakMemory, StreamEnd
from appliance.worker.replica import worker_socket


def events_of(model: str, link: Link | None) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
    """Yield the messages of the model that is loaded at ``link``, see ``Cluster.events``."""
    if link is None or link.transfer is None:
        return _messages(model, link)
    return _messages_with_files(model, link, link.transfer)


async def _messages(
    model: str, link: Link | None
) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
    """Yield the messages of a replica and its worker process, see ``Cluster.events``."""
    if link is None:
        raise WorkerLost(f"{model} is not loaded")
    run_dir = link.machine.run_dir
    paths = data_socket_path(run_dir, link.name), worker_socket(run_dir, link.name)
    try:
        connection = await data_socket.connect(*paths, link.held, link.machine.open_socket)
    except OSError as error:
        raise _broken(model, link, str(error)) from error
    link.connected(connection)
    try:
        async for message in connection.messages():
            match message:
                case list() | EngineMetrics():
                    yield message
                case PeakMemory(usage):
                    yield usage
                case StreamEnd(None):
                    return
                case StreamEnd(Failure() as failure):
                    raise failure.as_error()
        raise _broken(model, link, "it closed its socket")
    finally:
        connection.close()
        if link.connection is connection:
            link.connection = None


def _broken(model: str, link: Link, reason: str) -> WorkerLost:
    """Return the error of a replica that cannot be reached. Its node may be lost, which is noticed later."""
    node = link.machine
    if node.connection is None:
        return WorkerLost(f"the runner replica of {model} has died: {reason}")
    return NodeLost(f"the connection to the runner replica of {model} on node {node.name} broke: {reason}")


async def _messages_with_files(
    model: str, link: Link, transfer: Transfer
) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
    """Yield the messages of a model on another node; events that name files come once the files are here."""
    lost = link.machine.lost
    assert lost is not None
    lost.add_done_callback(transfer.end_with_loss)
    reader = asyncio.get_running_loop().create_task(_read(model, link, transfer))
    try:
        while (message := await transfer.messages.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message
    finally:
        lost.remove_done_callback(transfer.end_with_loss)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read(model: str, link: Link, transfer: Transfer) -> None:
    end: Exception | None = None
    try:
        async for message in _messages(model, link):
            if isinstance(message, list):
                link.received(message)
                transfer.files.receive(message)
            else:
                transfer.messages.put_nowait(message)
    except Exception as error:  # noqa: BLE001  # raised again where the messages are read
        end = error
        if isinstance(error, NodeLost):
            link.end_worker()
        transfer.files.cancel_sends()
    await transfer.files.events_delivered()
    if isinstance(end, WorkerLost) and not isinstance(end, NodeLost):
        transfer.files.abandon()
        await transfer.files.wait_for_deletions()  # before the predictions run again, maybe on this node
    transfer.messages.put_nowait(end)
