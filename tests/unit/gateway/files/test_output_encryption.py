"""Output files are encrypted in the background: none is lost or left in clear, also after a crash."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from appliance.config import FilesConfig
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Prediction
from appliance.gateway.files import output_encryption
from appliance.gateway.files.encrypted_file import FileCipher
from appliance.gateway.files.file_store import FileStore
from appliance.store import Store
from tests.support.appliance_process import until
from tests.support.store_files import opened
from tests.unit.store.test_erasures import prediction

KEY = os.urandom(32)
CONTENT = b"a secret text " * 1000


class FullDisk(FileCipher):
    """A cipher whose copies do not fit on the disk, until ``has_space``."""

    has_space = False
    tried = 0

    def encrypt(self, path: Path) -> None:
        self.tried += 1
        if not self.has_space:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().encrypt(path)


class Held(FileCipher):
    """A cipher that encrypts a file only after ``proceed``, and then also if the file was deleted."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.begun, self.proceed = threading.Event(), threading.Event()

    def encrypt(self, path: Path) -> None:
        self.begun.set()
        assert self.proceed.wait(60)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a copy")


async def started(store: Store, folder: Path, cipher: FileCipher) -> FileStore:
    files = FileStore(store.files, folder, FilesConfig(), cipher)
    await files.start()
    return files


def output(files: FileStore, record: Prediction) -> OutputFile:
    """Register an output file of a prediction, as if its worker process had just reported it."""
    path = Path(files.outputs(record.id, 1)) / "a.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    made = OutputFile(
        id=f"file-of-{record.id}",
        name="a.txt",
        content_type="text/plain",
        size=len(CONTENT),
        sha256="",
        md5="",
        path=str(path),
    )
    files.register(record, [made])
    return made


@pytest.mark.parametrize("stopped", ["closed", "killed"])
async def test_a_stop_before_the_encryption_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    monkeypatch.setattr(output_encryption, "RETRY_STORE", 60.0)
    folder, database, cipher = tmp_path / "files", tmp_path / "appliance.db", FileCipher(KEY)
    store = await opened(database)
    first = await started(store, folder, FullDisk(KEY))
    made = output(first, prediction("p", "ada", "text"))
    if stopped == "closed":
        await first.close()
    await store.close()

    store = await opened(database)
    again = await started(store, folder, cipher)
    row = await store.files.get(made.id)
    assert row is not None
    assert (row.prediction, row.path) == ("p", made.path)
    assert await again.content(folder / made.path) == CONTENT
    await until(lambda: cipher.is_encrypted(folder / made.path))
    assert await again.content(folder / made.path) == CONTENT
    assert [each.name for each in (folder / "outputs" / "p" / "1").iterdir()] == [Path(made.path).name]
    await again.close()
    await first.close()
    await store.close()


async def test_encryption_is_repeated_when_the_disk_has_space(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_encryption, "RETRY_STORE", 0.0)
    cipher = FullDisk(KEY)
    files = await started(store, tmp_path / "files", cipher)
    made = [files.folder / output(files, prediction(id, "ada", "text")).path for id in ("p", "q")]
    await until(lambda: cipher.tried > 4)
    assert [await files.content(path) for path in made] == [CONTENT, CONTENT]
    cipher.has_space = True
    await until(lambda: all(cipher.is_encrypted(path) for path in made))
    await files.close()


async def test_deletion_waits_for_the_encryption_in_progress(store: Store, tmp_path: Path) -> None:
    cipher = Held()
    files = await started(store, tmp_path / "files", cipher)
    output(files, prediction("p", "ada", "text"))
    await asyncio.to_thread(cipher.begun.wait, 60)
    deleting = asyncio.create_task(files.remove_outputs(["p"]))
    for _ in range(20):  # time enough to delete the folder
        await asyncio.to_thread(int)
    cipher.proceed.set()
    await deleting
    assert list((files.folder / "outputs").iterdir()) == []
    await files.close()


async def test_weights_of_trainings_are_not_encrypted(store: Store, tmp_path: Path) -> None:
    training = prediction("t", "ada", "text", destination="ada/model")
    await store.create(training)
    cipher = FileCipher(KEY)
    files = await started(store, tmp_path / "files", cipher)
    weights = files.folder / output(files, training).path
    await files.close()
    again = await started(store, tmp_path / "files", cipher)
    await again.remove_outputs(["other"])  # returns when the start has found all files to encrypt
    made = again.folder / output(again, prediction("p", "ada", "text")).path
    await until(lambda: cipher.is_encrypted(made))
    assert weights.read_bytes() == CONTENT
    assert weights.name == "a.txt"
    await again.close()
