"""The files of a source: names, sizes, and the content of small ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.domain.errors import WeightsError
from appliance.domain.units import readable_bytes

_LARGEST: Final = 16 * 1024**2  # bytes of a JSON file; configs are much smaller
_MOST: Final = 100_000  # files


class Listing(msgspec.Struct):
    """The files of a folder or repository."""

    title: str  # names the source in messages
    sizes: dict[str, int]  # path in the source -> bytes
    read: Callable[[str], bytes]
    revision: str | None = None  # commit of a repository
    licence: str | None = None
    task: str | None = None  # of the description of a repository
    base_model: str | None = None  # of the description of an adapter
    tags: tuple[str, ...] = ()
    gated: bool = False  # whether the hub asks to accept a licence first

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON object; empty if there is no such file.

        Raises:
            WeightsError: the file is no JSON object, or is too large.
        """
        if name not in self.sizes:
            return {}
        if self.sizes[name] > _LARGEST:
            raise WeightsError(
                f"{self.title}: {name} has {readable_bytes(self.sizes[name])}, more than the limit of "
                f"{readable_bytes(_LARGEST)} for a config: check the source"
            )
        try:
            found = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"{self.title}: {name} is not valid JSON: {error}: download it again"
            ) from error
        if not isinstance(found, dict):
            raise WeightsError(f"{self.title}: {name} is not a JSON object")
        return found


def list_folder(path: Path, title: str | None = None) -> Listing:
    """List a folder, or one file.

    Raises:
        WeightsError: it does not exist or cannot be read.
    """
    try:
        root = path.parent if path.is_file() else path
        if not path.exists():
            raise WeightsError(f"{path} does not exist: correct the path")
        sizes: dict[str, int] = {}
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and ".git" not in file.relative_to(root).parts:
                sizes[file.relative_to(root).as_posix()] = file.stat().st_size
            if len(sizes) > _MOST:
                raise WeightsError(f"{path} has more than {_MOST:,} files: name the folder of one model")
    except OSError as error:
        raise WeightsError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return Listing(title or str(path), sizes, lambda name: (root / name).read_bytes())
