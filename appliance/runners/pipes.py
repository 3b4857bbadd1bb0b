"""Pipes that another process writes to, read as fast as they fill."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Final

_MOST: Final = 256 * 1024  # bytes that are read at a time


class InPipe:
    """The reading end of a pipe, on the running loop; ``writer`` is the other end until ``start``."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        """``take`` is called with all that comes, in order."""
        self._take = take
        self._reader, self.writer = os.pipe()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._reader, False)

    def start(self) -> None:
        """Begin to read; the writing end is another process's alone from now on."""
        os.close(self.writer)
        self._loop.add_reader(self._reader, self._read, _MOST)

    def drain(self) -> None:
        """Take what was written until now, and no more: another process may go on writing."""
        (left,) = struct.unpack("i", fcntl.ioctl(self._reader, termios.FIONREAD, b"\0" * 4))
        while left > 0:
            left -= self._read(left)

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._reader)
        os.close(self._reader)

    def _read(self, most: int) -> int:
        try:
            data = os.read(self._reader, most)
        except BlockingIOError:
            return most
        if not data:  # nobody has the other end any more
            self._loop.remove_reader(self._reader)
            return most
        self._take(data)
        return len(data)
