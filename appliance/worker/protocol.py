"""Messages between the gateway, a runner replica, its worker process and the zygote.

A message is a length (4 bytes, big-endian) and that many bytes of msgpack: one tagged struct. Both ends of
each socket are processes of the same version of the appliance.
"""

from __future__ import annotations

import signal
import socket
import struct
from typing import Final, Generic, Self, TypeVar

import msgspec

from appliance.domain import file
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.prediction import Done, Emitted, Job
from appliance.domain.units import readable_bytes
from appliance.runners.base import LoadSpec
from appliance.worker.memory_monitor import MemoryUsage

_LENGTH: Final = struct.Struct(">I")
_encoder: Final = msgspec.msgpack.Encoder(enc_hook=file.pack)
_DONE: Final = Done.__struct_config__.tag
_SIGNALS: Final = {number.value: number.name for number in signal.Signals}
T = TypeVar("T")


_ERRORS: Final[dict[str, type[LoadFailed | WorkerLost | SleepFailed]]] = {
    "oom": OutOfMemory,  # before its base class
    "lost": WorkerLost,
    "sleep_failed": SleepFailed,
    "failed": LoadFailed,
}


class Failure(msgspec.Struct, frozen=True):
    """An error of a replica or of its worker process, sent as data."""

    message: str
    kind: str  # key of ``_ERRORS``
    memory: int | None = None  # bytes that a worker process used when it ran out of memory

    @classmethod
    def of(cls, error: LoadFailed | WorkerLost | SleepFailed) -> Self:
        kind = next(name for name, type in _ERRORS.items() if isinstance(error, type))
        return cls(error.detail, kind, error.memory if isinstance(error, OutOfMemory) else None)

    def as_error(self) -> LoadFailed | WorkerLost | SleepFailed:
        """Return the error from which this message was made."""
        if self.kind == "oom":
            return OutOfMemory(self.message, self.memory)
        return _ERRORS[self.kind](self.message)


class Commands(msgspec.Struct, tag="commands"):
    """Gateway to replica: all commands that wait to be sent, in one message."""

    jobs: list[Job] = []  # predictions to run; those that the replica already has are ignored
    cancels: list[str] = []  # ids of predictions to cancel
    acknowledged: list[str] = []  # ids of predictions whose end is stored: their events can be dropped
    limit: int | None = None  # new limit of the worker process, in bytes of main memory
    direct: bool = False  # stop relaying events: the gateway gets them from the worker process


class PeakMemory(msgspec.Struct, frozen=True, tag="peak"):
    """Replica to gateway: the worker process has reached a new peak of memory use."""

    usage: MemoryUsage


class StreamEnd(msgspec.Struct, frozen=True, tag="end"):
    """Replica to gateway: no more events follow on this connection."""

    failure: Failure | None = (
        None  # why the worker process is lost; None: unloaded, or read by another gateway
    )


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """Gateway to worker process: send events to this connection too."""

    token: str  # random


class DirectAttached(msgspec.Struct, frozen=True, tag="direct"):
    """Worker process to replica, and replica to gateway: the gateway that sent this token is attached.

    All events before this message are the replica's to relay. All events after it are also sent to the
    gateway by the worker process.
    """

    token: str


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Replica or gateway to worker process: start these predictions."""

    jobs: list[Job]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Replica or gateway to worker process: cancel these predictions; unknown ids are ignored."""

    ids: list[str]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Replica to worker process: drop predictions without sending any event, close the runner and exit."""


class SleepWorker(msgspec.Struct, frozen=True, tag="sleep"):
    """Replica to worker process: put the model to sleep and free the device. No prediction may run."""

    level: int  # 1: move the weights to main memory, 2: drop them


class WakeWorker(msgspec.Struct, frozen=True, tag="wake"):
    """Replica to worker process: wake the model, which uses the device again."""


class WorkerReady(msgspec.Struct, frozen=True, tag="ready"):
    """Worker process to replica: the model is loaded."""

    levels: list[int] = []  # sleep levels that the model supports


class WorkerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker process to replica: the model cannot be loaded or cannot continue; the worker process exits."""

    error: str
    out_of_memory: bool = False  # because the memory of its device was used up


class WorkerAsleep(msgspec.Struct, frozen=True, tag="asleep"):
    """Worker process to replica: the model is asleep and the device is free."""

    left: int | None  # bytes of each device that the model still holds; None if the runner does not know


class WorkerAwake(msgspec.Struct, frozen=True, tag="awake"):
    """Worker process to replica: the model can run predictions again."""


class WorkerSleepFailed(msgspec.Struct, frozen=True, tag="sleep_failed"):
    """Worker process to replica: the model failed to sleep or wake; kill the worker process."""

    error: str


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Worker process to replica and gateway, and replica to gateway: events of predictions, in order.

    The replica decodes this message as ``RelayedEvents``, which leaves each event encoded.
    """

    events: list[Emitted]
    #: Ids and attempts of predictions that the gateway has sent to the worker process without the replica.
    received: list[tuple[str, int]] = []


class _EventTag(msgspec.Struct):
    """The type tag of an encoded event; the other fields are not decoded."""

    type: str


class RelayedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An ``Emitted`` whose event stays encoded, because the replica only forwards the event."""

    id: str
    attempt: int
    n: int
    event: msgspec.Raw

    @property
    def is_last(self) -> bool:
        """Whether the event is ``Done``."""
        return _tag_decoder.decode(self.event).type == _DONE


class RelayedEvents(msgspec.Struct, frozen=True, tag="events"):
    """``Events`` as the replica decodes them."""

    events: list[RelayedEvent]
    received: list[tuple[str, int]] = []


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Replica to zygote: fork a worker process. This message carries the descriptor of its socket."""

    spec: LoadSpec
    environment: dict[str, str]  # variables that are set in addition to those of the zygote
    log: str  # absolute path; standard output and standard error are appended
    pid_files: str  # absolute path of the folder of pid files
    socket: str  # absolute path where the worker process listens for the gateway


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Gateway to zygote: import these modules now, for worker processes that are forked later."""

    modules: list[str]


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """Zygote to replica: the worker process runs, as the leader of its own process group."""

    pid: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Zygote to replica: the operating system refused to fork."""

    error: str


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """Zygote to replica: the worker process has ended, and the rest of its process group was killed."""

    code: int  # exit code; the negative number of the signal that ended the process

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exited with code {self.code}"
        return f"was killed by signal {-self.code} ({_SIGNALS.get(-self.code, 'real-time')})"


WorkerCommand = Run | Cancel | SleepWorker | WakeWorker | Stop
WorkerEvent = (
    WorkerReady
    | WorkerFailed
    | WorkerAsleep
    | WorkerAwake
    | WorkerSleepFailed
    | RelayedEvents
    | EngineMetrics
    | DirectAttached
)
#: What the gateway sends to the worker process itself.
DirectCommand = Attach | Run | Cancel
_tag_decoder: Final = msgspec.msgpack.Decoder(_EventTag)
FromReplica = Events | EngineMetrics | PeakMemory | StreamEnd | DirectAttached
#: ``FromReplica`` as the replica sends it.
ToGateway = RelayedEvents | EngineMetrics | PeakMemory | StreamEnd | DirectAttached
ToZygote = Fork | Prepare
FromZygote = Forked | Refused | Exited


def encode(message: msgspec.Struct) -> bytes:
    """Return the length and the encoded message.

    Raises:
        ValueError: the message has 4 GiB or more.
    """
    body = bytearray(_LENGTH.size)
    _encoder.encode_into(message, body, _LENGTH.size)
    size = len(body) - _LENGTH.size
    if size >= 1 << 32:
        raise ValueError(f"a message of {readable_bytes(size)} is too large: the limit is 4 GiB")
    _LENGTH.pack_into(body, 0, size)
    return bytes(body)


class MessageReader(Generic[T]):
    """Splits a stream of bytes into messages."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._rest = bytearray()
        self._wanted = 0  # bytes that ``_rest`` must have before it contains a whole message

    def feed(self, data: bytes) -> list[T]:
        """Return the messages that are complete with ``data``; the rest of the bytes is kept.

        Raises:
            msgspec.DecodeError: the bytes are not a valid message.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:  # a large message comes in hundreds of parts
                return []
            data = bytes(self._rest)
            self._rest.clear()
        view = memoryview(data)
        at, end = 0, len(data)
        self._wanted = 0
        messages = []
        while end - at >= _LENGTH.size:
            body = at + _LENGTH.size
            following = body + int(_LENGTH.unpack_from(data, at)[0])
            if following > end:
                self._wanted = following - at
                break
            messages.append(self._decoder.decode(view[body:following]))
            at = following
        self._rest += view[at:]
        return messages


def receive(sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Read one message from a blocking socket.

    Raises:
        EOFError: the other end has closed the socket.
    """
    (size,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return decoder.decode(_exactly(sock, size))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the socket was closed in the middle of a message")
        data += part
    return bytes(data)
