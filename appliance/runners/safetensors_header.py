"""Reads the names and shapes of tensors from safetensors files, without a library that loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_LONGEST: Final = 100 * 1024**2  # bytes of a header; the format's own limit


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, or in the files directly in a folder.

    Files that cannot be read are left out: loading them raises the error.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length)) if length <= _LONGEST else {}
            header.pop("__metadata__", None)
            found |= {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found
