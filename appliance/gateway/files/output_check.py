"""Finds output files that are missing or incomplete, so that no prediction succeeds with such a file.

An output file can be lost between the event that names it and the end of its prediction, for example while
the gateway is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.domain.errors import StoreError
from appliance.domain.file import File, output_files
from appliance.domain.prediction import Prediction
from appliance.gateway.files.open_content import open_local
from appliance.store.files import FileTable

if TYPE_CHECKING:
    from appliance.gateway.files.encrypted_file import FileCipher


def problem_of(path: Path, size: int, cipher: FileCipher | None) -> str | None:
    """Return None if the file has ``size`` bytes of content, else what is wrong with it."""
    try:
        found = path.stat().st_size
        if found != size and cipher is not None:  # it may be encrypted
            with contextlib.closing(open_local(path, cipher)) as content:
                found = content.size
    except FileNotFoundError:
        return "is missing on the disk"
    except (OSError, StoreError) as error:
        return f"cannot be read: {error.strerror if isinstance(error, OSError) else 'it is damaged'}"
    return None if found == size else f"has {found:,} bytes on the disk instead of {size:,}"


class EarlierOutputs:
    """The output files of unfinished predictions whose rows an earlier gateway has stored."""

    def __init__(self) -> None:
        self._problems: dict[str, str | None] = {}  # by path

    async def check(self, table: FileTable, folder: Path, cipher: FileCipher | None) -> None:
        """Check the files on the disk. A file that is in the bucket by its row counts as complete."""
        files = await table.unfinished_outputs()
        self._problems = await asyncio.to_thread(_problems_of, files, folder, cipher)
        for path, problem in self._problems.items():
            if problem is not None and await table.objects.state(path) == "stored":
                self._problems[path] = None

    def __contains__(self, path: str) -> bool:
        """Return whether ``path``, relative to the folder of files, is the path of such a file."""
        return path in self._problems

    def problem(self, path: str) -> str | None:
        """Return the problem of the file at ``path``, which was checked; None if it has none."""
        return self._problems[path]

    def problem_in(self, record: Prediction) -> str | None:
        """Return what is wrong with a file in the stored output of an unfinished prediction, if anything."""
        for file in output_files(record.plain_output):
            if (problem := self._problems.get(file.path)) is not None:
                return f"the output file {file.name} {problem}"
        return None


def _problems_of(files: Iterable[File], folder: Path, cipher: FileCipher | None) -> dict[str, str | None]:
    return {file.path: problem_of(folder / file.path, file.size, cipher) for file in files}
