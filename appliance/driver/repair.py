"""What `appliance doctor --fix` repairs: permissions, leftovers of dead processes, files without a row.

Repairs that end processes or delete files hold the lock of the data folder, so that no appliance can start
meanwhile: its worker processes have pid files too, and it writes files before their rows.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Final

from appliance.builds import environments, project, project_image
from appliance.domain.units import readable_bytes
from appliance.driver import backup, home_lock, permissions
from appliance.driver.backup_format import DATABASE
from appliance.store import snapshot
from appliance.worker.cleanup import kill_leftover_workers, pid_folder

_DEPTH: Final = 3  # parts of the paths of uploads, folders of predictions, and folders of versions


def recorded_worker_pids(home: Path) -> list[int]:
    """Return the process ids in the pid files of worker processes. These processes may have ended."""
    return sorted(int(file.name) for file in pid_folder(home / "run").glob("[0-9]*"))


def unfinished(home: Path) -> list[Path]:
    """Return the folders that interrupted backups and builds have left."""
    builds = [each.unfinished(home) for each in (project, project_image, environments)]
    return [*backup.leftovers(home), *itertools.chain.from_iterable(builds)]


def restrict_permissions(home: Path) -> str:
    permissions.tighten(home)
    return f"removed the permissions of other users from {home}"


def remove_leftovers(home: Path) -> str:
    """End worker processes and remove folders that a stopped appliance left behind.

    Raises:
        ApplianceError: an appliance uses the data folder.
    """
    with home_lock.take(home):
        killed = kill_leftover_workers(home / "run")
        folders = unfinished(home)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    return f"ended {len(killed)} worker processes and removed {len(folders)} unfinished folders"


def missing(home: Path) -> list[str]:
    """Return the paths of content that rows refer to, and that is neither on the disk nor in a bucket.

    Raises:
        StoreError: the database cannot be read.
    """
    found = {reference.path for reference in snapshot.references(home / DATABASE)}
    found -= snapshot.in_bucket(home / DATABASE)
    return sorted(path for path in found if not (home / path).exists())


def unreferenced(home: Path) -> list[Path]:
    """Return stored files and folders of files that the database does not refer to.

    The appliance must not run, because it writes files before their rows.

    Raises:
        StoreError: the database cannot be read.
    """
    known = {"/".join(each.path.split("/")[:_DEPTH]) for each in snapshot.references(home / DATABASE)}
    entries = (
        entry for kind in ("uploads", "outputs", "versions") for entry in (home / "files" / kind).glob("*")
    )
    return sorted(entry for entry in entries if str(entry.relative_to(home)) not in known)


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.lstat().st_size for each in files if each.is_file())


def remove_unreferenced(home: Path) -> str:
    """Remove stored files and folders of files that the database does not refer to.

    Raises:
        ApplianceError: an appliance uses the data folder, or the database cannot be read.
    """
    with home_lock.take(home):
        found = unreferenced(home)
        total = sum(map(size, found))
        for entry in found:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    return f"removed {len(found)} files and folders ({readable_bytes(total)})"
