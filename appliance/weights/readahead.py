"""Reads weights into the page cache, so that loading them does not wait for the disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

_CHUNK: Final = 1024 * 1024  # bytes between two checks of `stop`


def read_ahead(path: Path, budget: int, stop: threading.Event) -> int:
    """Read a file, or all files of a folder, until ``budget`` bytes are read or ``stop`` is set.

    Blocks, and returns the number of bytes read. Unreadable files are skipped: loading them raises the error.
    """
    buffer = memoryview(bytearray(_CHUNK))
    done = 0
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for each in files:
        try:
            with each.open("rb", buffering=0) as file:
                while not stop.is_set() and done < budget:
                    size = file.readinto(buffer[: min(_CHUNK, budget - done)])
                    if not size:
                        break
                    done += size
        except OSError:
            continue
    return done
