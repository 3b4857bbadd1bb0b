"""A pipe from another process to the event loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Final

_MAX_READ: Final = 256 * 1024  # bytes of one read


class InPipe:
    """A pipe whose data the running event loop passes to ``on_data``.

    ``writer`` is the file descriptor of the writing end. Start the other process with it before ``start``.
    """

    def __init__(self, on_data: Callable[[bytes], None]) -> None:
        self._on_data = on_data
        self._reader, self.writer = os.pipe()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._reader, False)

    def start(self) -> None:
        """Begin to read, and close the writing end in this process."""
        os.close(self.writer)
        self._loop.add_reader(self._reader, self._read, _MAX_READ)

    def drain(self) -> None:
        """Read the bytes written so far; another process may continue to write."""
        (left,) = struct.unpack("i", fcntl.ioctl(self._reader, termios.FIONREAD, b"\0" * 4))
        while left > 0:
            left -= self._read(left)

    def close(self) -> None:
        self._loop.remove_reader(self._reader)
        os.close(self._reader)

    def _read(self, limit: int) -> int:
        try:
            data = os.read(self._reader, limit)
        except BlockingIOError:
            return limit
        if not data:  # all writing ends are closed
            self._loop.remove_reader(self._reader)
            return limit
        self._on_data(data)
        return len(data)
