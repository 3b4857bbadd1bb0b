"""Backups: what is in them, what may happen meanwhile, and which are refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.progress import Progress

from appliance.builds import project
from appliance.domain.errors import ApplianceError, StoreError
from appliance.domain.file import File
from appliance.domain.model import Adapter, Project
from appliance.domain.prediction import Prediction, Status, new_id, new_stream_token
from appliance.driver import backup, repair
from appliance.driver.backup_format import CHECKSUMS, FORMAT, MANIFEST, Manifest, checksum_line
from appliance.driver.restore import restore
from appliance.store import snapshot
from appliance.store.queries import STEPS
from tests.support.store_files import opened

QUIET = Progress(disable=True)


def upload(id: str, content: bytes) -> File:
    digest = hashlib.sha256(content).hexdigest()
    fields: dict[str, Any] = {"name": f"{id}.txt", "content_type": "text/plain", "sha256": digest, "md5": "0"}
    return File(id=id, owner="me", size=len(content), created_at=1.0, path=f"uploads/{id}", **fields)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A data folder with a prediction, an upload, a trained version and a build, closed."""
    home = tmp_path / "home"
    store = await opened(home / "appliance.db")
    for id in ("one", "two"):
        write(home / "files" / "uploads" / id, id.encode() * 1000).chmod(0o400)
        await store.files.add(upload(id, id.encode() * 1000))
    await store.create(prediction("kept"))
    adapter = Adapter(
        version="a" * 64,
        model="me/tuned",
        base_model="b/b",
        base_version="b",
        training="t",
        created_at=1.0,
        path=f"versions/{'a' * 64}",
    )
    write(home / "files" / adapter.path / "weights" / "adapter.bin", b"weights")
    await store.registry.add_adapter(adapter)
    write(home / "files" / "uploads" / "unknown", b"no row")
    build = home / "cog" / "build-1"
    write(build / "build.json", b"{}")
    write(build / "venv" / "lib" / "python3.11" / "site-packages" / "e.pth", f"{build}/project\n".encode())
    write(build / "venv" / "bin" / "tool", b"#!/bin/sh\n").chmod(0o755)
    (build / "venv" / "bin" / "python").symlink_to("/usr/bin/python3")
    pushed = Project(version="c" * 64, model="me/pushed", build="build-1", created_at=1.0, memory=None)
    await store.registry.add_project(pushed)
    write(home / "cog" / "build-2" / "build.json", b"not pushed")
    write(home / "ui.key", b"key")
    await store.close()
    return home


def prediction(id: str) -> Prediction:
    return Prediction(
        id=id,
        model="acme/hello",
        version="0" * 64,
        owner="me",
        input={"text": "Alice"},
        created_at=1.0,
        stream_token=new_stream_token(),
    )


def save(home: Path, target: Path, **config: bytes) -> backup.Saved:
    return backup.create(home, target, config, QUIET)


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            found[member.name] = content.read() if content else member.linkname.encode()
        return found


def repack(file: Path, change: Callable[[dict[str, bytes]], Any], *, sums: bool = True) -> None:
    """Write the archive again after ``change``; without ``sums``, with the checksums of before."""
    content = members(file)
    del content["cog/build-1/venv/bin/python"]
    if sums:
        change(content)
    content.pop(CHECKSUMS)
    lines = (checksum_line(name, hashlib.sha256(body).hexdigest()) for name, body in content.items())
    content[CHECKSUMS] = b"".join(lines)
    if not sums:
        change(content)
    with tarfile.open(file, "w:gz") as archive:
        for name, body in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))


def refused(file: Path, target: Path) -> str:
    """The reason why ``restore`` refuses the file; the folder stays empty."""
    with pytest.raises(ApplianceError) as refusal:
        restore(file, target, QUIET)
    assert not target.exists()
    assert not list(target.parent.glob(".restore*"))
    return refusal.value.detail


async def test_everything_that_rows_refer_to_is_saved_and_restored(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    saved = save(home, file, **{"models.yaml": b"models: []"})
    assert saved.lost == ()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = members(file)
    assert next(iter(found)) == MANIFEST
    assert list(found)[-1] == CHECKSUMS
    manifest = msgspec.json.decode(found[MANIFEST], type=Manifest)
    assert (manifest.format, manifest.schema) == (FORMAT, len(STEPS))
    assert "files/uploads/unknown" not in found
    assert not any("build-2" in name for name in found)
    target = tmp_path / "elsewhere"
    restore(file, target, QUIET)
    assert (target / "config" / "models.yaml").read_bytes() == b"models: []"
    assert (target / "ui.key").read_bytes() == b"key"
    assert (target / "files" / "uploads" / "two").read_bytes() == b"two" * 1000
    assert (target / "files" / "versions" / ("a" * 64) / "weights" / "adapter.bin").read_bytes() == b"weights"
    build = target / "cog" / "build-1"
    assert str((build / "venv" / "bin" / "python").readlink()) == "/usr/bin/python3"
    assert os.access(build / "venv" / "bin" / "tool", os.X_OK)
    packages = build / "venv" / "lib" / "python3.11" / "site-packages"
    assert (packages / "e.pth").read_text() == f"{build}/project\n"
    assert {path.name for path in target.iterdir()} == {"appliance.db", "files", "cog", "config", "ui.key"}
    store = await opened(target / "appliance.db")
    record = await store.get("kept")
    assert record is not None
    assert record.status is Status.STARTING
    await store.close()
    assert not list(home.glob(".backup*"))


def test_the_checksums_are_those_of_sha256sum(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    save(home, file)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (home / "cog").rename(tmp_path / "cog")  # its link would be followed
    subprocess.run(["tar", "xf", file, "-C", unpacked], check=True)
    ran = subprocess.run(
        ["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=unpacked, capture_output=True, text=True
    )
    assert [line for line in ran.stdout.splitlines() if "bin/python" not in line] == []
    assert len((unpacked / CHECKSUMS).read_bytes().splitlines()) == len(members(file)) - 1


@pytest.mark.parametrize("deleted", ["files", "adapters"])
async def test_what_is_deleted_after_the_copy_does_not_break_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: str
) -> None:
    store = await opened(home / "appliance.db")
    copy = snapshot.copy
    rounds: list[Path] = []

    def deleting(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
        copy(source, target, progress)
        if not rounds:
            with sqlite3.connect(source) as other:  # as the gateway: the row first
                other.execute(
                    {"files": "DELETE FROM files WHERE id = 'one'", "adapters": "DELETE FROM adapters"}[
                        deleted
                    ]
                )
            if deleted == "files":
                (home / "files" / "uploads" / "one").unlink()
            # Otherwise the folder of the version is still there: its deletion has just begun.
        rounds.append(source)

    monkeypatch.setattr(snapshot, "copy", deleting)
    file = tmp_path / "b.tar.gz"
    assert save(home, file).lost == ()
    await store.close()
    assert len(rounds) == 2
    found = members(file)
    assert ("files/uploads/one" in found) == (deleted != "files")
    assert any("versions" in name for name in found) == (deleted != "adapters")
    assert "files/uploads/two" in found
    target = tmp_path / "elsewhere"
    restore(file, target, QUIET)
    for each in snapshot.references(target / "appliance.db"):
        assert (target / each.path).exists()


def test_what_was_missing_before_is_named(home: Path, tmp_path: Path) -> None:
    (home / "files" / "uploads" / "one").unlink()
    assert save(home, tmp_path / "b.tar.gz").lost == ("files/uploads/one",)


async def test_files_that_are_only_in_the_bucket_are_counted(home: Path, tmp_path: Path) -> None:
    store = await opened(home / "appliance.db")
    for path, id in (("uploads/one", "one"), (f"versions/{'a' * 64}/weights.bin", "a" * 64)):
        assert await store.files.objects.begin(path, id) == "uploading"
        assert await store.files.objects.complete(path)
    await store.close()
    (home / "files" / "uploads" / "one").unlink()
    saved = save(home, tmp_path / "b.tar.gz")
    assert (saved.lost, saved.in_bucket) == ((), 1)
    restore(tmp_path / "b.tar.gz", tmp_path / "elsewhere", QUIET)
    assert repair.missing(tmp_path / "elsewhere") == []


async def test_a_file_that_is_moved_after_the_copy_of_the_database_is_in_the_bucket(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(home / "appliance.db")
    assert await store.files.objects.begin("uploads/one", "one") == "uploading"
    await store.close()
    copy = snapshot.copy

    def copy_and_move(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
        copy(source, target, progress)
        with contextlib.closing(sqlite3.connect(source)) as writer:
            writer.executemany(
                "REPLACE INTO bucket_objects VALUES (?, 'stored')", [("uploads/one",), ("uploads/two",)]
            )
            writer.commit()
        for name in ("one", "two"):
            (home / "files" / "uploads" / name).unlink(missing_ok=True)

    monkeypatch.setattr(snapshot, "copy", copy_and_move)
    monkeypatch.setattr(backup, "ROUNDS", 1)
    saved = save(home, tmp_path / "b.tar.gz")
    assert (saved.lost, saved.in_bucket) == ((), 2)
    restored = tmp_path / "elsewhere"
    restore(tmp_path / "b.tar.gz", restored, QUIET)
    assert repair.missing(restored) == []
    assert snapshot.in_bucket(restored / "appliance.db") == {"files/uploads/one", "files/uploads/two"}


def test_endless_deletions_end_the_backup(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = iter(range(1000))
    monkeypatch.setattr(backup, "_link_all", lambda *_: {f"files/uploads/{next(number)}"})
    with pytest.raises(ApplianceError, match=r"attempts to copy the database \(last attempt: 1\)"):
        save(home, tmp_path / "b.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


async def test_writers_do_not_restart_the_copy(home: Path, tmp_path: Path) -> None:
    store = await opened(home / "appliance.db")
    for _ in range(40):
        record = prediction(new_id())
        await store.create(record.evolve(input={"text": "x" * 500_000}))
    writer = sqlite3.connect(home / "appliance.db", isolation_level=None)
    calls: list[int] = []

    def writing(done: int, total: int) -> None:
        calls.append(done)
        assert len(calls) < 20, "the copy begins again and again"
        writer.execute("INSERT INTO writable VALUES (1)")

    snapshot.copy(home / "appliance.db", tmp_path / "copy.db", writing)
    writer.close()
    await store.close()
    assert len(calls) > 2
    assert calls == sorted(set(calls))
    assert snapshot.check(tmp_path / "copy.db") == len(STEPS)


def test_a_file_that_exists_is_never_replaced(home: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "b.tar.gz", b"mine")
    with pytest.raises(ApplianceError, match=r"b\.tar\.gz exists already"):
        save(home, file)
    assert file.read_bytes() == b"mine"


def test_a_folder_without_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with pytest.raises(ApplianceError, match="is not the data folder of an appliance"):
        save(tmp_path / "home", tmp_path / "b.tar.gz")


def test_a_damaged_database_is_not_saved(home: Path, tmp_path: Path) -> None:
    database = home / "appliance.db"
    content = database.read_bytes()
    database.write_bytes(content[:8192] + b"\xff" * 4096 + content[12288:])
    with pytest.raises(StoreError, match="damaged"):
        save(home, tmp_path / "b.tar.gz")


def test_a_database_of_an_earlier_format_is_saved_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with sqlite3.connect(home / "appliance.db") as connection:
        connection.executescript(f"{STEPS[0]}; PRAGMA user_version = 1")
    assert save(home, tmp_path / "b.tar.gz").manifest.schema == 1
    restore(tmp_path / "b.tar.gz", tmp_path / "elsewhere", QUIET)
    assert snapshot.check(tmp_path / "elsewhere" / "appliance.db") == 1


def test_folders_of_dead_backups_are_removed(home: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = home / f".backup.abc.{dead.pid}"
    write(left / "appliance.db", b"x")
    alive = home / f".backup.def.{os.getpid()}"
    alive.mkdir()
    assert backup.leftovers(home) == [left]
    save(home, tmp_path / "b.tar.gz")
    assert not left.exists()
    assert alive.exists()


# What is not restored


@pytest.fixture
def archive(home: Path, tmp_path: Path) -> Path:
    save(home, tmp_path / "b.tar.gz")
    return tmp_path / "b.tar.gz"


def test_a_folder_that_is_in_use_is_refused(archive: Path, home: Path, tmp_path: Path) -> None:
    before = sorted(home.rglob("*"))
    with pytest.raises(ApplianceError, match="home is not empty"):
        restore(archive, home, QUIET)
    assert sorted(home.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    restore(archive, tmp_path / "empty", QUIET)
    assert (tmp_path / "empty" / "appliance.db").exists()


@pytest.mark.parametrize("key", ["format", "schema"])
def test_a_newer_backup_is_refused(archive: Path, tmp_path: Path, key: str) -> None:
    def newer(content: dict[str, bytes]) -> None:
        manifest = json.loads(content[MANIFEST])
        manifest[key] += 1
        content[MANIFEST] = json.dumps(manifest).encode()

    repack(archive, newer)
    assert ": upgrade, then restore" in refused(archive, tmp_path / "new")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_backup_is_refused(archive: Path, tmp_path: Path, part: float) -> None:
    os.truncate(archive, int(archive.stat().st_size * part))
    assert "is damaged" in refused(archive, tmp_path / "new")


def test_a_changed_member_is_refused(archive: Path, tmp_path: Path) -> None:
    repack(archive, lambda content: content.update({"files/uploads/two": b"TWO" * 1000}), sums=False)
    reason = refused(archive, tmp_path / "new")
    assert "the checksum of files/uploads/two is wrong" in reason


def test_a_missing_end_is_refused(archive: Path, tmp_path: Path) -> None:
    repack(archive, lambda content: content.pop(CHECKSUMS), sums=False)
    assert "the file is truncated" in refused(archive, tmp_path / "new")


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "files/../../evil", "evil", "files/./evil", "run/x"]
)
def test_members_outside_of_the_folder_are_refused(archive: Path, tmp_path: Path, name: str) -> None:
    def hostile(content: dict[str, bytes]) -> None:
        content[name] = b"evil"

    repack(archive, hostile)
    assert f"{name} " in refused(archive, tmp_path / "new")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("name", "kind"), [("files/x", tarfile.SYMTYPE), ("cog/b/x", tarfile.LNKTYPE), ("cog/b", tarfile.DIRTYPE)]
)
def test_links_and_special_members_are_refused(archive: Path, tmp_path: Path, name: str, kind: bytes) -> None:
    content = members(archive)
    with tarfile.open(archive, "w:gz") as rewritten:
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(content[MANIFEST])
        rewritten.addfile(member, io.BytesIO(content[MANIFEST]))
        hostile = tarfile.TarInfo(name)
        hostile.type, hostile.linkname = kind, "/etc/passwd"
        rewritten.addfile(hostile)
    assert "neither a file nor a link in a build" in refused(archive, tmp_path / "new")


def test_nothing_is_written_through_a_link(archive: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    content = members(archive)
    with tarfile.open(archive, "w:gz") as rewritten:
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(content[MANIFEST])
        rewritten.addfile(member, io.BytesIO(content[MANIFEST]))
        link = tarfile.TarInfo("cog/b")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        rewritten.addfile(link)
        member = tarfile.TarInfo("cog/b/file")
        member.size = 1
        rewritten.addfile(member, io.BytesIO(b"x"))
    refused(archive, tmp_path / "new")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path / "b.tar.gz", content)
    assert "is no backup of an appliance" in refused(file, tmp_path / "new")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "b.tar.gz: No such file" in refused(tmp_path / "b.tar.gz", tmp_path / "new")


async def test_a_backup_without_its_database_is_refused(archive: Path, tmp_path: Path) -> None:
    repack(archive, lambda content: content.pop("appliance.db"))
    assert "it has no appliance.db" in refused(archive, tmp_path / "new")


def test_relocating_a_build_changes_paths_only_in_editable_packages(tmp_path: Path) -> None:
    packages = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    write(packages / "__editable___x_finder.py", b"MAPPING = {'x': '/old/project/x'}")
    write(packages / "x.py", b"'/old/project'")
    outside = tmp_path.parent / "outside.pth"
    outside.write_bytes(b"/old/project")
    (packages / "link.pth").symlink_to(outside)
    project.relocate(tmp_path, Path("/old"), Path("/new"))
    assert outside.read_bytes() == b"/old/project"
    assert b"/new/project/x" in (packages / "__editable___x_finder.py").read_bytes()
    assert (packages / "x.py").read_bytes() == b"'/old/project'"
