"""Standard streams that write the output of each prediction to its own log.

Text that a prediction writes to ``sys.stdout`` or ``sys.stderr`` becomes its log. All other output goes to
the log file of the worker process. A context variable holds the log of the current prediction; tasks and
``asyncio.to_thread`` inherit the variable. C code writes to the descriptors 1 and 2, which are always the log
file.
"""

from __future__ import annotations

import asyncio
import io
import math
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, TextIO

from appliance.domain.errors import DiskFull

#: Least time between two logged states of a redrawn line (a progress bar): in seconds, and as a fraction of
#: the time since the line was first redrawn. The longer time applies.
STATE_SECONDS: Final = 1.0
STATE_SHARE: Final = 0.05

#: Limits of one prediction's log in characters, because the log is part of every response and webhook. The
#: first KEPT characters are sent at once, and the last KEPT_END characters when the prediction ends.
KEPT: Final = 8 * 1024 * 1024
KEPT_END: Final = 64 * 1024


class PredictionLog:
    """The log of one prediction, which accepts text from any thread.

    A carriage return restarts the line, as on a terminal. Text that was sent cannot be replaced, so each sent
    state of a redrawn line becomes a line of its own. Progress bars redraw a line thousands of times, so the
    longer a line is redrawn, the fewer of its states are sent. The last state is always sent.
    """

    def __init__(self, emit: Callable[[str], None], late: TextIO) -> None:
        """``emit`` is called with text, on the running loop. Text after ``close`` goes to ``late``."""
        self._emit = emit
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._returned = False  # the last character was a carriage return, so the next text replaces the line
        self._held = ""  # the part of the line that is not sent yet
        self._begun = False  # whether a part of the line was sent
        self._replaces = False  # whether ``_held`` replaces the part that was sent
        self._redrawn_at: float | None = None  # time when the line was first replaced
        self._sent_at = 0.0  # time when a state of the line was last sent
        self._timer: asyncio.TimerHandle | None = None
        self._kept = 0  # number of characters sent
        self._end: str | None = None  # the latest text, if the log is longer than KEPT
        self._left_out = 0  # number of lines that are never sent
        self.closed = False

    def write(self, text: str) -> None:
        """Add text. Texts from the same thread keep their order."""
        if threading.get_ident() == self._thread:
            self._take(text)
        else:
            self._loop.call_soon_threadsafe(self._take, text)

    def close(self) -> None:
        """Send the text that is not sent yet."""
        if not self.closed:
            self._send(self._shown())
            if self._end is not None:
                self._trim(KEPT_END)
                self._emit(f"[{self._left_out} lines of the log are left out here]\n{self._end}")
        self.closed = True

    def _take(self, text: str) -> None:
        if self.closed:
            self._late.write(text)
            return
        if "\r" not in text and not self._returned and self._redrawn_at is None:
            self._begun = not text.endswith("\n") if text else self._begun
            self._send(text)
            return
        sent = []
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n")):
            if number > 0:
                sent.append(self._ended())
            self._redraw(line)
        if self._is_due():
            sent.append(self._shown())
        self._send("".join(sent))

    def _pass_on(self, text: str) -> None:
        if self._end is not None:
            self._end += text
            self._trim(2 * KEPT_END)
        elif self._kept + len(text) <= KEPT:
            self._kept += len(text)
            self._emit(text)
        else:
            cut = text.rfind("\n", 0, KEPT - self._kept) + 1  # after a whole line
            notice = f"[the log has over {KEPT:,} characters: its end follows when the prediction ends]\n"
            self._emit(f"{text[:cut]}{notice}")
            self._end = ""
            self._pass_on(text[cut:])

    def _trim(self, most: int) -> None:
        """If ``_end`` has over ``most`` characters, keep its last lines: at most ``KEPT_END`` characters."""
        if self._end is not None and len(self._end) > most:
            over = len(self._end) - KEPT_END
            cut = self._end.find("\n", over - 1) + 1 or over
            self._left_out += self._end.count("\n", 0, cut)
            self._end = self._end[cut:]

    def _redraw(self, line: str) -> None:
        for number, state in enumerate(line.split("\r")):
            if number > 0:
                self._returned = True
            if not state:
                continue
            if not self._returned:
                self._held += state
                continue
            self._returned = False
            self._held, self._replaces = state, self._begun
            if self._redrawn_at is None:
                self._redrawn_at, self._sent_at = self._loop.time(), -math.inf

    def _is_due(self) -> bool:
        """Return whether to send ``_held`` now. If it is too early, start a timer that sends it."""
        if not self._held or self._redrawn_at is None:
            return bool(self._held)
        due = self._sent_at + max(STATE_SECONDS, STATE_SHARE * (self._sent_at - self._redrawn_at))
        now = self._loop.time()
        if now < due and self._timer is None:
            self._timer = self._loop.call_later(due - now, lambda: self._send(self._shown()))
        return now >= due

    def _shown(self) -> str:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            return ""
        text = f"\n{self._held}" if self._replaces else self._held
        self._held, self._begun, self._replaces = "", True, False
        self._sent_at = self._loop.time()
        return text

    def _ended(self) -> str:
        text = self._shown() + "\n"
        self._begun = self._returned = False
        self._redrawn_at = None
        return text

    def _send(self, text: str) -> None:
        if text:
            self._pass_on(text if text.isascii() else text.encode(errors="replace").decode())


_current: ContextVar[PredictionLog | None] = ContextVar("prediction_log", default=None)


def assign(log: PredictionLog) -> None:
    """Write the output of the calling task to ``log`` from now on."""
    _current.set(log)


class CapturingStream(io.TextIOBase):
    """Replaces ``sys.stdout`` or ``sys.stderr``. Text that belongs to no prediction goes to ``original``."""

    def __init__(self, original: TextIO) -> None:
        self._original = original
        self.buffer = original.buffer  # bytes go to the log file

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute, io a property
        return self._original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # as above
        return self._original.errors

    def write(self, text: str, /) -> int:
        log = _current.get()
        if log is None or log.closed:
            return self._original.write(text)
        log.write(text)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def fileno(self) -> int:
        """Return the descriptor of the log file, for example for ``faulthandler``."""
        return self._original.fileno()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        """Return False, so that programs write no escape sequences for colours and cursor movements."""
        return False


def install() -> TextIO:
    """Replace ``sys.stdout`` and ``sys.stderr``; return a stream to the log file of the worker process."""
    out, log_file = _unclosed(1), _unclosed(2)
    sys.stdout, sys.stderr = CapturingStream(out), CapturingStream(log_file)
    return log_file


class _LogFile(io.FileIO):
    """Drops data if the disk is full, so that a prediction does not fail because it prints."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not DiskFull.is_cause_of(error):
                raise
            return memoryview(data).nbytes


def _unclosed(descriptor: int) -> TextIO:
    binary = io.BufferedWriter(_LogFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)
