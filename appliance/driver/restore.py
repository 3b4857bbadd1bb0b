"""`appliance restore`: make a data folder from a backup.

Everything is unpacked into a hidden folder and checked there. Only then is it moved to its place, so a
restore that fails leaves the data folder empty.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import msgspec
from rich.progress import Progress

from appliance.builds import project
from appliance.domain.errors import ApplianceError
from appliance.driver.backup_format import (
    BUILDS,
    CHECKSUMS,
    CHUNK,
    DATABASE,
    FORMAT,
    MANIFEST,
    TOP,
    Manifest,
    checksum_line,
)
from appliance.store import snapshot

_LARGEST_MANIFEST: Final = 1024 * 1024  # bytes
_DAMAGE: Final = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


def restore(backup: Path, home: Path, progress: Progress) -> Manifest:
    """Unpack a backup into the data folder ``home``, which must be empty or missing.

    Raises:
        ApplianceError: the folder is not empty; the backup is damaged, is no backup, or is newer than this
            code; or a file cannot be read or written. Nothing was changed.
    """
    existed = home.is_dir()
    if home.exists() and (not existed or any(home.iterdir())):
        raise ApplianceError(f"{home} is not empty: restore into an empty or a new folder, with --home")
    unpacked = home / f".restore.{os.getpid()}"
    done = False
    try:
        unpacked.mkdir(mode=0o700, parents=True)
        home.chmod(0o700)
        manifest = _unpack(backup, unpacked, progress)
        _check_database(unpacked / DATABASE, manifest, backup)
        for build in (unpacked / BUILDS).glob("*"):
            project.relocate(build, Path(manifest.home) / BUILDS / build.name, home / BUILDS / build.name)
        os.sync()
        (unpacked / MANIFEST).unlink()
        for entry in sorted(unpacked.iterdir(), key=lambda entry: entry.name == DATABASE):
            entry.rename(home / entry.name)  # the database last: without it, the folder is not in use
        done = True
    except OSError as error:
        raise ApplianceError(
            f"{backup} cannot be restored: {error.filename or backup}: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        if not done and home.is_dir():
            _empty(home, existed=existed)
    return manifest


def _empty(home: Path, *, existed: bool) -> None:
    for entry in home.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not existed:
        with contextlib.suppress(OSError):
            home.rmdir()


def _damaged(backup: Path, reason: object) -> ApplianceError:
    return ApplianceError(
        f"{backup} is damaged, or is no backup of an appliance: {reason}: use another backup"
    )


def _unpack(backup: Path, folder: Path, progress: Progress) -> Manifest:
    """Extract all members into ``folder``, and compare them with their checksums."""
    manifest, complete = None, False
    links: dict[Path, str] = {}
    sums = folder / CHECKSUMS
    with backup.open("rb") as file, sums.open("w+b") as found:
        task = progress.add_task("restoring", total=os.fstat(file.fileno()).st_size)
        try:
            with gzip.GzipFile(fileobj=file) as data, tarfile.open(fileobj=data, mode="r|") as archive:
                for member in archive:
                    _check_name(backup, member)
                    if complete or (manifest is None) != (member.name == MANIFEST):
                        raise _damaged(backup, f"{member.name} is out of order")
                    if member.name == CHECKSUMS:
                        _compare(backup, archive, member, found)
                        complete = True
                        continue
                    found.write(checksum_line(member.name, _extract(archive, member, folder, links)))
                    if manifest is None:
                        manifest = _manifest(backup, folder / MANIFEST)
                    progress.update(task, completed=file.tell())
                while data.read(CHUNK):  # the end has a checksum of the whole archive
                    pass
        except _DAMAGE as error:
            raise _damaged(backup, error) from error
        except FileExistsError as error:
            raise _damaged(backup, f"{error.filename} is in it twice") from error
    if manifest is None or not complete:
        raise _damaged(backup, "the file is truncated")
    sums.unlink()
    for path, target in links.items():  # last, so that no file was written through a link
        path.symlink_to(target)
    return manifest


def _check_name(backup: Path, member: tarfile.TarInfo) -> None:
    """Refuse members outside of the data folder, and members that no backup has.

    Links are allowed in builds only: the Python environment of a build links to its interpreter.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] == () or path.parts[0] not in TOP:
        raise _damaged(backup, f"{member.name} would be outside of the data folder")
    if not (member.isreg() or (member.issym() and path.parts[0] == BUILDS)):
        raise _damaged(backup, f"{member.name} is neither a file nor a link in a build")
    if (member.name == MANIFEST and member.size > _LARGEST_MANIFEST) or str(path) != member.name:
        raise _damaged(backup, f"{member.name} is not a member of a backup")


def _manifest(backup: Path, file: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise _damaged(backup, f"{MANIFEST}: {error}") from error
    if manifest.format > FORMAT or manifest.schema > snapshot.FORMAT:
        raise ApplianceError(
            f"{backup} was written by appliance {manifest.appliance}: backup format {manifest.format}, "
            f"database format {manifest.schema}; this version reads up to {FORMAT} and {snapshot.FORMAT}: "
            "upgrade, then restore"
        )
    return manifest


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, links: dict[Path, str]) -> str:
    """Write one member and return its SHA-256; links are only added to ``links``."""
    path = folder / member.name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if member.issym():
        if links.setdefault(path, member.linkname) != member.linkname or path.exists():
            raise FileExistsError(0, "", member.name)
        return hashlib.sha256(os.fsencode(member.linkname)).hexdigest()
    content = archive.extractfile(member)
    assert content is not None, "the member is a file"
    sha256 = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        while data := content.read(CHUNK):
            sha256.update(data)
            file.write(data)
        os.fchmod(file.fileno(), member.mode & 0o700)
    return sha256.hexdigest()


def _compare(backup: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, found: BinaryIO) -> None:
    """Compare the checksums in the archive with those of the extracted members."""
    content = archive.extractfile(member)
    assert content is not None, "the member is a file"
    found.seek(0)
    for expected, actual in itertools.zip_longest(content, found, fillvalue=b""):
        if expected != actual:
            name = (actual or expected).decode(errors="replace").partition("  ")[2].strip()
            raise _damaged(backup, f"the checksum of {name} is wrong")


def _check_database(database: Path, manifest: Manifest, backup: Path) -> None:
    if not database.is_file():
        raise _damaged(backup, f"it has no {DATABASE}")
    if snapshot.check(database) != manifest.schema:
        raise _damaged(backup, f"{MANIFEST} and {DATABASE} name different formats of the database")
