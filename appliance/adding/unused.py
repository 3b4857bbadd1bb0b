"""Weights and environments on the disk that no model of models.yaml uses."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from appliance.adding import pending
from appliance.builds import environments, git, project_image
from appliance.config import CogModel, Config, GitSource, HubSource, ImageSource, PypiSource
from appliance.domain.errors import ApplianceError, Conflict, WeightsError
from appliance.runners.adapters import with_downloads
from appliance.weights import folder, locations

_KINDS: Final = ("hub", "pypi", "local", "git", "image", "adapters")
_PARTIAL: Final = ".partial"


class Unused(NamedTuple):
    """A folder or file that no model uses."""

    path: Path
    size: int  # bytes


def unused(home: Path, configs: Callable[[], Iterable[Config]]) -> list[Unused]:
    """Return weights, environments and leftovers of downloads that no model of the configs uses.

    The largest are first. Models that are being added use their weights. ``configs`` is called after these
    models are read, so that a model that is written to models.yaml meanwhile is seen. Environments of Cog
    projects are not looked at, because pushed versions use them too.
    """
    root = home / "weights"
    used: set[Path | None] = set()
    kinds = set(_KINDS)
    added = [each.config() for each in pending.read_all(home)]
    for model in with_downloads([*added, *(model for config in configs() for model in config.models)]):
        used.add(environments.folder(home, model))
        if isinstance(model.source, GitSource):
            used.add(git.folder(home, model.source))
        elif model.source is not None:
            try:
                if isinstance(model, CogModel) and not isinstance(model.source, ImageSource):
                    kinds.discard("image")  # the project may have changed since the image that runs was built
                used.add(folder(home, model))
                used.add(folder(home, model).resolve())  # of an image that is named by a tag
            except (WeightsError, OSError):  # a folder of the user that is missing, perhaps not mounted
                kinds.discard("local")
    found = [path for kind in _KINDS if kind in kinds for path in _inside(root / kind) if path not in used]
    marks = {locations.mark(model) for model in added if isinstance(model.source, HubSource | PypiSource)}
    found += [path for path in _leftovers(root / _PARTIAL) if path.name.partition("-")[0] not in marks]
    if "image" in kinds:
        found += [each for each in _inside(project_image.root(home)) if each.name[0] != "."]
    sizes = [Unused(path, folder_size(path)) for path in found]
    # Links to files of the appliance and of uv's cache take no space.
    old = [each for each in _inside(environments.root(home)) if not each.name.startswith(".")]
    sizes += [Unused(path, folder_size(path, links=False)) for path in old if path not in used]
    return sorted(sizes, key=lambda each: -each.size)


def delete_unused(
    home: Path, configs: Callable[[], Iterable[Config]], paths: Collection[Path], *, every: bool = False
) -> list[Unused]:
    """Delete those of ``paths`` that are unused now, as ``unused`` finds them, and return them.

    No addition starts meanwhile, so the weights of a model that is being added stay. With ``every``, all of
    the paths are deleted or none.

    Raises:
        Conflict: ``every`` is set, and a path is in use or does not exist.
        ApplianceError: a path cannot be removed.
    """
    with pending.locked(home):
        found = {each.path: each for each in unused(home, configs)}
        if every and (missing := [path for path in paths if path not in found]):
            raise Conflict(f"{missing[0]} is not unused, or does not exist: list the unused weights again.")
        deleted = [found[path] for path in dict.fromkeys(paths) if path in found]
        for each in deleted:
            _delete(each)
    return deleted


def _delete(found: Unused) -> None:
    try:
        if found.path.is_dir() and not found.path.is_symlink():
            shutil.rmtree(found.path)
        else:
            found.path.unlink(missing_ok=True)
    except OSError as error:
        raise ApplianceError(f"{error.filename or found.path} cannot be removed: {error.strerror}") from error


def folder_size(path: Path, *, links: bool = True) -> int:
    """Return the size in bytes of a file or of all files in a folder.

    Without ``links``, files that have several hard links are not counted.
    """
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    found = (file.lstat() for file in files if file.is_file() and not file.is_symlink())
    return sum(each.st_size for each in found if links or each.st_nlink == 1)


def _inside(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def _leftovers(partial: Path) -> Iterator[Path]:
    """Yield unfinished downloads that no process works on."""
    names = {path.name.partition("-")[0].removesuffix(".lock") for path in _inside(partial)}
    for name in sorted(names):
        lock = partial / f"{name}.lock"
        with contextlib.ExitStack() as stack:
            if lock.exists():
                opened = stack.enter_context(lock.open())
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # a download runs
                    continue
            yield from (path for path in (partial / name, partial / f"{name}-converted") if path.exists())
