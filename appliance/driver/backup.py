"""`appliance backup`: save the state of an appliance in one file, while it runs.

Rows are deleted before their content (see ``gateway.files.file_store``), so content that has vanished belongs
to a row that has been deleted since the copy of the database was made. Then a newer copy is made. Content
that was found is hard-linked into a staging folder, so that nothing can vanish before it is in the archive.

With ``files.s3``, content that is only in the bucket is not in the archive.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import secrets
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec
from rich.progress import Progress

from appliance import __version__
from appliance.domain.errors import ApplianceError
from appliance.driver.backup_format import (
    CHECKSUMS,
    CHUNK,
    CONFIG,
    DATABASE,
    FORMAT,
    MANIFEST,
    UI_KEY,
    Manifest,
    checksum_line,
)
from appliance.machine.processes import is_running
from appliance.store import snapshot
from appliance.store.snapshot import Reference

#: Copies of the database that are made until one refers to no content that has vanished.
ROUNDS: Final = 10
_LEVEL: Final = 1  # of gzip; media are compressed already
_STAGING: Final = ".backup"  # prefix of the folder with hard links to the content of a backup that is written
_VERSIONS: Final = "files/versions/"


class Saved(NamedTuple):
    """Result of a backup."""

    manifest: Manifest
    size: int  # bytes of the archive
    lost: tuple[str, ...]  # content that the database refers to and that is nowhere
    in_bucket: int = 0  # files that are not in the archive, because they are only in the bucket of files.s3


def create(home: Path, target: Path, config: Mapping[str, bytes], progress: Progress) -> Saved:
    """Write a backup of the data folder ``home`` to the new file ``target``, readable by this user only.

    ``config`` maps names of config files to their contents.

    Raises:
        ApplianceError: ``target`` exists, the database cannot be read, or a file cannot be read or written.
    """
    if target.exists():
        raise ApplianceError(f"{target} exists already: choose another name, or remove it")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    sweep(home)
    staging = home / f"{_STAGING}.{secrets.token_hex(4)}.{os.getpid()}"
    try:
        if not (home / DATABASE).exists():
            raise ApplianceError(f"{home} is not the data folder of an appliance: it has no {DATABASE}")
        staging.mkdir(mode=0o700)
        missing = _stage(home, staging, progress)
        in_bucket = missing & snapshot.in_bucket(staging / DATABASE)
        lost = missing - in_bucket
        for name, content in config.items():
            saved = staging / CONFIG / name
            saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            saved.write_bytes(content)
        manifest = _manifest(home, staging)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _write(file, staging, manifest, progress)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.link(part, target)  # unlike a rename, this never replaces a file
    except FileExistsError as error:
        raise ApplianceError(f"{target} exists already: choose another name, or remove it") from error
    except OSError as error:
        raise ApplianceError(
            f"the backup {target} cannot be written: {error.filename or target}: {error.strerror}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
    return Saved(manifest, size, tuple(sorted(lost)), len(in_bucket))


def leftovers(home: Path) -> list[Path]:
    """Return the folders of backups whose processes have died."""
    found = []
    for folder in home.glob(f"{_STAGING}.*"):
        pid = folder.name.rpartition(".")[2]
        if not (pid.isdecimal() and is_running(int(pid))):
            found.append(folder)
    return sorted(found)


def sweep(home: Path) -> None:
    for folder in leftovers(home):
        shutil.rmtree(folder, ignore_errors=True)


# -- staging the content -----------------------------------------------------------------------------------


def _stage(home: Path, staging: Path, progress: Progress) -> set[str]:
    """Copy the database, and link all content that the copy refers to, into ``staging``.

    Returns the paths that exist neither in the data folder nor in ``staging``, although rows refer to them.
    """
    copied = staging / DATABASE
    task = progress.add_task("database")
    missing: set[str] = set()
    for _ in range(ROUNDS):
        snapshot.copy(
            home / DATABASE, copied, lambda done, total: progress.update(task, completed=done, total=total)
        )
        snapshot.check(copied)
        earlier, missing = missing, _link_all(home, staging, copied)
        # Files may have been moved to the bucket since the copy was made; trained versions stay.
        if gone := {each for each in missing - snapshot.in_bucket(copied) if not each.startswith(_VERSIONS)}:
            snapshot.record_in_bucket(copied, gone & snapshot.in_bucket(home / DATABASE))
        # The others are lost if their rows were not deleted between the two copies.
        if missing - snapshot.in_bucket(copied) <= earlier:
            _unlink_unknown(staging, copied)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(home / UI_KEY, staging / UI_KEY)
            return missing
    raise ApplianceError(
        f"files were deleted during each of {ROUNDS} attempts to copy the database (last attempt: "
        f"{len(missing)}): increase retention.predictions or retention.outputs in models.yaml"
    )


def _link_all(home: Path, staging: Path, copied: Path) -> set[str]:
    """Link the content that the copy of the database refers to; return the paths that have vanished."""
    missing = set()
    folders = []
    for reference in snapshot.references(copied):
        if not _link(home, staging, reference):
            missing.add(reference.path)
        elif reference.may_be_folder:
            folders.append(reference.path)
    if folders:  # a folder may have been linked while it was being deleted
        known = {each.path for each in snapshot.references(home / DATABASE) if each.may_be_folder}
        for path in folders:
            if path not in known:
                _remove(staging / path)
                missing.add(path)
    return missing


def _link(home: Path, staging: Path, reference: Reference) -> bool:
    """Link one file or folder, unless it is linked already; return whether it is complete."""
    source, target = home / reference.path, staging / reference.path
    if target.exists():
        return True
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _link_tree(source, target)
    except FileNotFoundError:
        _remove(target)
        return False
    return True


def _link_tree(source: Path, target: Path) -> None:
    """Link a file, or all files in a folder.

    Raises:
        FileNotFoundError: the source, or a file in it, was deleted.
    """
    if source.is_symlink() or not source.is_dir():
        _link_file(source, target)
        return
    target.mkdir(mode=0o700)
    for entry in os.scandir(source):
        _link_tree(Path(entry.path), target / entry.name)


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target, follow_symlinks=False)
        shutil.copystat(source, target, follow_symlinks=False)


def _unlink_unknown(staging: Path, copied: Path) -> None:
    """Remove content that was linked for an earlier copy of the database, and has been deleted since."""
    known = {reference.path for reference in snapshot.references(copied)}
    for folder, folders, files in os.walk(staging / "files"):
        here = Path(folder).relative_to(staging)
        folders[:] = [name for name in folders if str(here / name) not in known]
        for name in files:
            if str(here / name) not in known:
                _remove(staging / here / name)
    for build in (staging / "cog").glob("*"):
        if str(build.relative_to(staging)) not in known:
            _remove(build)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# -- writing the archive -----------------------------------------------------------------------------------


def _manifest(home: Path, staging: Path) -> Manifest:
    sizes = [path.lstat().st_size for path in _members(staging)]
    return Manifest(
        format=FORMAT,
        appliance=__version__,
        schema=snapshot.check(staging / DATABASE),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        home=str(home),
        members=len(sizes),
        bytes=sum(sizes),
    )


def _members(folder: Path) -> Iterator[Path]:
    """Yield all files and links below ``folder``, sorted by name."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _members(Path(entry.path))
        else:
            yield Path(entry.path)


def _write(file: IO[bytes], staging: Path, manifest: Manifest, progress: Progress) -> None:
    task = progress.add_task("files", total=manifest.bytes)
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        tempfile.TemporaryFile(dir=staging.parent) as sums,
    ):
        archive.copybufsize = CHUNK  # type: ignore[attr-defined]  # missing in the stubs
        description = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        sums.write(add_file(archive, MANIFEST, io.BytesIO(description), len(description), 0o600))
        for path in _members(staging):
            name = str(path.relative_to(staging))
            if path.is_symlink():
                sums.write(_add_link(archive, name, str(path.readlink())))
                continue
            with path.open("rb") as content:
                found = os.fstat(content.fileno())
                sums.write(add_file(archive, name, content, found.st_size, found.st_mode & 0o700))
            progress.advance(task, found.st_size)
        size = sums.tell()
        sums.seek(0)
        add_file(archive, CHECKSUMS, sums, size, 0o600)


class _Hashed:
    """A readable file that computes the hash of all bytes that are read."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._content.read(size)
        self.sha256.update(data)
        return data


def add_file(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int, mode: int) -> bytes:
    """Add a file to an archive; return its line for ``SHA256SUMS``."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, mode, int(time.time())
    hashed = _Hashed(content)
    archive.addfile(member, hashed)
    return checksum_line(name, hashed.sha256.hexdigest())


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o700
    archive.addfile(member)
    return checksum_line(name, hashlib.sha256(os.fsencode(target)).hexdigest())
