"""Reads weights into the page cache before a load, so that the load does not wait for the disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

_CHUNK: Final = 1024 * 1024  # bytes between two looks at whether to stop


def read_ahead(place: Path, budget: int, stop: threading.Event) -> int:
    """Read the files below ``place``, or the file that it is, in the order of their names. Blocks.

    Ends once ``budget`` bytes are read, or ``stop`` is set. What cannot be read is left to whoever loads it.
    Returns how many bytes were read.
    """
    buffer = memoryview(bytearray(_CHUNK))
    done = 0
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while not stop.is_set() and done < budget:
                    size = file.readinto(buffer[: min(_CHUNK, budget - done)])
                    if not size:
                        break
                    done += size
        except OSError:
            continue
    return done
