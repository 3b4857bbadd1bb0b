"""Pipes from another process, read without delay by the event loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Final

_MOST: Final = 256 * 1024  # bytes of one read


class InPipe:
    """The reading end of a pipe, on the running loop.

    ``writer`` is the writing end. Pass it to another process before ``start``.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        """``take`` is called with the bytes read, in order."""
        self._take = take
        self._reader, self.writer = os.pipe()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._reader, False)

    def start(self) -> None:
        """Begin to read, and close the writing end in this process."""
        os.close(self.writer)
        self._loop.add_reader(self._reader, self._read, _MOST)

    def drain(self) -> None:
        """Read the bytes written so far, but no more, because another process may go on writing."""
        (left,) = struct.unpack("i", fcntl.ioctl(self._reader, termios.FIONREAD, b"\0" * 4))
        while left > 0:
            left -= self._read(left)

    def close(self) -> None:
        """Stop reading and close the pipe."""
        self._loop.remove_reader(self._reader)
        os.close(self._reader)

    def _read(self, most: int) -> int:
        try:
            data = os.read(self._reader, most)
        except BlockingIOError:
            return most
        if not data:  # all writing ends are closed
            self._loop.remove_reader(self._reader)
            return most
        self._take(data)
        return len(data)
