"""The messages between a runner replica, its worker process and the zygote, and how they are framed.

A frame is a length (4 bytes, big-endian) and that many bytes of msgpack: one tagged struct. Both ends of
every socket are processes of this appliance, of the same version.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, Generic, TypeVar

import msgspec

from appliance.domain import file
from appliance.domain.prediction import Done, Emitted, Job
from appliance.runners.base import LoadSpec

_LENGTH: Final = struct.Struct(">I")
_encoder: Final = msgspec.msgpack.Encoder(enc_hook=file.pack)
_DONE: Final = Done.__struct_config__.tag
T = TypeVar("T")


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Replica to worker process: begin these predictions."""

    jobs: list[Job]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Replica to worker process: stop these predictions; those it does not know are ignored."""

    ids: list[str]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Replica to worker process: drop predictions without sending any event, close the runner and exit."""


class SleepWorker(msgspec.Struct, frozen=True, tag="sleep"):
    """Replica to worker process: give the device back; nothing runs."""

    level: int  # 1: weights go to main memory, 2: they are dropped


class WakeWorker(msgspec.Struct, frozen=True, tag="wake"):
    """Replica to worker process: take the device again."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker process to replica: the model is loaded."""

    memory: int  # bytes of main memory that worker process and children use, beside what the zygote has
    seconds: float  # from the start of ``setup``
    levels: list[int] = []  # of sleep that the model is able to


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker process to replica: the model cannot be loaded, or cannot go on; the worker process exits."""

    error: str
    out_of_memory: bool = False  # for want of memory on its device


class WorkerAsleep(msgspec.Struct, frozen=True, tag="asleep"):
    """Worker process to replica: the device is given back."""

    left: int | None  # bytes of each device that the runner knows to hold still; None if it does not know


class WorkerAwake(msgspec.Struct, frozen=True, tag="awake"):
    """Worker process to replica: predictions may come again."""


class WorkerSleepFailed(msgspec.Struct, frozen=True, tag="sleep_failed"):
    """Worker process to replica: it could not fall asleep, or wake, and should be ended."""

    error: str


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Worker process to replica: events of predictions, in order; read there as ``RelayedEvents``."""

    events: list[Emitted]


class _EventTag(msgspec.Struct):
    """The type of an event; decoding it skips all other fields."""

    type: str


class RelayedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An ``Emitted`` whose event stays encoded: the replica only passes it on, and the gateway decodes it."""

    id: str
    attempt: int
    n: int
    event: msgspec.Raw

    @property
    def is_last(self) -> bool:
        """Whether this event ends the prediction."""
        return _tag_decoder.decode(self.event).type == _DONE


class RelayedEvents(msgspec.Struct, frozen=True, tag="events"):
    """``Events`` as the replica reads them."""

    events: list[RelayedEvent]


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Replica to zygote: start a worker process; the descriptor of its socket travels beside this."""

    spec: LoadSpec
    environment: dict[str, str]  # set in the worker process, over what the zygote has
    log: str  # absolute path; the worker process's output streams are appended to it
    pid_files: str  # absolute path of the folder of pid files


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Gateway to zygote: import these modules too, so that worker processes forked later start with them."""

    modules: list[str]


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """Zygote to replica: the worker process runs, as leader of a process group of its own."""

    pid: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Zygote to replica: the operating system would not fork."""

    error: str


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """Zygote to replica: the worker process is gone, and what was left of its process group is killed."""

    code: int | None  # exit code; None if a signal ended it
    signal: int | None


WorkerCommand = Run | Cancel | SleepWorker | WakeWorker | Stop
WorkerEvent = Ready | Failed | WorkerAsleep | WorkerAwake | WorkerSleepFailed | RelayedEvents
_tag_decoder: Final = msgspec.msgpack.Decoder(_EventTag)
ToZygote = Fork | Prepare
FromZygote = Forked | Refused | Exited


def encode(message: msgspec.Struct) -> bytes:
    """One frame.

    Raises:
        ValueError: the message takes 4 GiB or more.
    """
    body = bytearray(_LENGTH.size)
    _encoder.encode_into(message, body, _LENGTH.size)
    size = len(body) - _LENGTH.size
    if size >= 1 << 32:
        raise ValueError(f"a message of {size} bytes does not fit into a frame")
    _LENGTH.pack_into(body, 0, size)
    return bytes(body)


class MessageReader(Generic[T]):
    """Cuts a stream of bytes into messages of one type."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        """``decoder`` says what the other end may send."""
        self._decoder = decoder
        self._rest = bytearray()
        self._wanted = 0  # bytes that `_rest` must have before looking at it is of use

    def feed(self, data: bytes) -> list[T]:
        """The messages that are complete with ``data``; what is left over is kept.

        Raises:
            msgspec.DecodeError: the other end does not speak this protocol.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:  # a large frame comes in hundreds of parts
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
    """Wait for exactly one message on a blocking socket.

    Raises:
        EOFError: the other end has closed it.
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
