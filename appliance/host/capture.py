"""Output streams that know whose output they carry.

What a prediction writes to ``sys.stdout`` or ``sys.stderr`` becomes its logs; everything else goes where it
went before, the host's log file. A prediction is recognised by a context variable, which its task and
threads started with ``asyncio.to_thread`` carry. Writes of C code to descriptors 1 and 2 do not pass here and
always end in the log file.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TextIO


class PredictionLog:
    """Takes the text of one prediction, from any thread, until it is closed."""

    def __init__(self, emit: Callable[[str], None], late: TextIO) -> None:
        """``emit`` is called on the running loop; ``late`` takes what is written after ``close``."""
        self._emit = emit
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._returned = False  # a carriage return came last: the line ends once something follows
        self._line_begun = False
        self.closed = False

    def write(self, text: str) -> None:
        """Take a piece of text; the order within one thread is kept."""
        if threading.get_ident() == self._thread:
            self._take(text)
        else:
            self._loop.call_soon_threadsafe(self._take, text)

    def close(self) -> None:
        """The prediction is done."""
        self.closed = True

    def _take(self, text: str) -> None:
        if not text:
            return
        if self.closed:
            self._late.write(text)
            return
        if "\r" in text or self._returned:
            text = self._break_lines(text)
        if text:
            self._line_begun = not text.endswith("\n")
            self._emit(text if text.isascii() else text.encode(errors="replace").decode())

    def _break_lines(self, text: str) -> str:
        """Progress bars redraw their line after a carriage return; in a log each state is a line."""
        if self._returned and not text.startswith("\n") and self._line_begun:
            text = "\n" + text
        text = text.replace("\r\n", "\n")
        self._returned = text.endswith("\r")
        body = text.rstrip("\r")
        if not self._line_begun:
            body = body.lstrip("\r")
        return body.replace("\r", "\n")


_current: ContextVar[PredictionLog | None] = ContextVar("prediction_log", default=None)


def assign(log: PredictionLog) -> None:
    """From here on the calling task's output is ``log``'s."""
    _current.set(log)


class CapturingStream(io.TextIOBase):
    """A text stream in place of ``sys.stdout`` or ``sys.stderr``."""

    def __init__(self, original: TextIO) -> None:
        """``original`` takes what belongs to no prediction."""
        self._original = original
        self.buffer = original.buffer  # bytes written by hand go to the log file

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute, io a property
        """Of the log file."""
        return self._original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # as above
        """Of the log file."""
        return self._original.errors

    def write(self, text: str, /) -> int:
        """Part of ``TextIOBase``."""
        log = _current.get()
        if log is None or log.closed:
            return self._original.write(text)
        log.write(text)
        return len(text)

    def flush(self) -> None:
        """Part of ``TextIOBase``."""
        self._original.flush()

    def fileno(self) -> int:
        """The log file's: for what writes past Python, such as ``faulthandler``."""
        return self._original.fileno()

    def writable(self) -> bool:
        """Part of ``TextIOBase``."""
        return True

    def isatty(self) -> bool:
        """Never: colours and cursor movements have no place in logs."""
        return False


def install() -> TextIO:
    """Put capturing streams in place of this process's; returns a stream to the log file."""
    out, log_file = _unclosed(1), _unclosed(2)
    sys.stdout, sys.stderr = CapturingStream(out), CapturingStream(log_file)
    return log_file


def _unclosed(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
