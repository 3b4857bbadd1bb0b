"""Files are moved to the bucket: none is lost, and none is forgotten there, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import copy
import os
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.config import FilesConfig
from appliance.domain.errors import BucketUnavailable, ContentMissing, OutputRemoved, StoreError
from appliance.domain.file import File, OutputFile
from appliance.domain.model import Adapter
from appliance.gateway.files import bucket_transfer
from appliance.gateway.files.bucket_mark import MARK
from appliance.gateway.files.bucket_transfer import BucketTransfer
from appliance.gateway.files.encrypted_file import FileCipher
from appliance.gateway.files.file_store import FileStore
from appliance.store import Store, snapshot
from tests.support.api_client import Api
from tests.support.appliance_process import until
from tests.support.engine_bench import Bench
from tests.support.memory_bucket import MemoryBucket
from tests.support.store_files import opened
from tests.unit.gateway.files.test_output_encryption import output
from tests.unit.store.test_erasures import prediction

CONTENT = b"the content of a file " * 1000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_transfer, "_SHORTEST", 0.001)
    monkeypatch.setattr(bucket_transfer, "_LONGEST", 0.001)
    monkeypatch.setattr(bucket_transfer, "_INTERVAL", 0.01)


async def started(
    store: Store, folder: Path, bucket: MemoryBucket, cipher: FileCipher | None = None
) -> FileStore:
    transfer = BucketTransfer(bucket, store.files, folder, cipher)
    files = FileStore(store.files, folder, FilesConfig(), cipher, transfer)
    await files.start()
    await until(transfer._checked.is_set)
    return files


async def upload(files: FileStore, content: bytes = CONTENT) -> File:
    incoming = await files.incoming(len(content))
    await incoming.write(content)
    return await files.keep(incoming, owner="me", name="a.txt", content_type="text/plain", metadata={})


def adapter(version: str) -> Adapter:
    """Return the row of a trained version."""
    fields: dict[str, Any] = {"model": "me/tuned", "base_model": "b/b", "base_version": "v", "training": "t"}
    return Adapter(version=version, created_at=1.0, path=f"versions/{version}", **fields)


def state(files: FileStore, path: str) -> str | None:
    row = files.table._connections._row_inline("object_state", {"path": path})
    return None if row is None else row[0]


def stored(files: FileStore, path: str) -> bool:
    return state(files, path) == "stored"


async def moved(files: FileStore, path: str) -> None:
    await until(lambda: state(files, path) == "stored" and not (files.folder / path).exists())


async def test_an_upload_is_moved_read_and_deleted(store: Store, tmp_path: Path) -> None:
    bucket = MemoryBucket()
    files = await started(store, tmp_path / "files", bucket)
    file = await upload(files)
    await moved(files, file.path)
    assert bucket.objects() == {file.path: CONTENT}
    assert await files.content(files.path(file)) == CONTENT
    await files.copy_content(files.path(file), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    await files.remove(file)
    await until(lambda: not bucket.objects() and state(files, file.path) is None)
    with pytest.raises(OutputRemoved):
        await files.content(files.path(file))
    await files.close()


async def test_files_stay_on_the_disk_while_the_bucket_is_away(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bucket = MemoryBucket()
    files = await started(store, tmp_path / "files", bucket)
    bucket.away = True
    file = await upload(files)
    await until(lambda: len(bucket.uploading) > 3)
    assert await files.content(files.path(file)) == CONTENT
    bucket.away = False
    await moved(files, file.path)
    assert await files.content(files.path(file)) == CONTENT
    bucket.away = True
    with pytest.raises(BucketUnavailable):
        await files.content(files.path(file))
    away = [each for each in caplog.messages if "cannot be moved to the bucket" in each]
    (message,) = away
    assert message.endswith("deleted there, retrying: s3://bucket/prefix: connection refused")
    assert "the bucket s3://bucket/prefix answers again" in caplog.messages
    await files.close()


@pytest.mark.parametrize("stopped", ["before the upload", "after the upload", "after the state"])
async def test_a_restart_continues(tmp_path: Path, stopped: str) -> None:
    folder, database = tmp_path / "files", tmp_path / "appliance.db"
    bucket = MemoryBucket()
    bucket.held = asyncio.Event()
    store = await opened(database)
    first = await started(store, folder, bucket)
    bucket.away = stopped == "before the upload"
    file = await upload(first)
    await until(lambda: bucket.uploading and (bucket.away or bucket.objects()))
    if stopped == "after the state":
        assert await store.files.objects.complete(file.path)
    await first.close()  # ends every task where it is
    assert first.path(file).read_bytes() == CONTENT
    await store.close()

    bucket = MemoryBucket(bucket.memory)
    if bucket.objects():
        bucket.lose(file.path)  # as if it was deleted after a backup of the database
    store = await opened(database)
    again = await started(store, folder, bucket)
    await moved(again, file.path)
    assert bucket.objects() == {file.path: CONTENT}
    await again.close()
    await store.close()


async def test_a_file_that_is_deleted_during_its_upload_leaves_no_object(
    store: Store, tmp_path: Path
) -> None:
    bucket = MemoryBucket()
    bucket.held = asyncio.Event()
    files = await started(store, tmp_path / "files", bucket)
    file = await upload(files)
    await until(bucket.objects)
    await files.remove(file)
    bucket.held.set()
    await until(lambda: not bucket.objects() and state(files, file.path) is None)
    await files.close()


async def test_a_refused_deletion_is_repeated_also_after_a_restart(tmp_path: Path) -> None:
    folder, database, bucket = tmp_path / "files", tmp_path / "appliance.db", MemoryBucket()
    store = await opened(database)
    files = await started(store, folder, bucket)
    file = await upload(files)
    await moved(files, file.path)
    bucket.refused = {file.path}
    await files.remove(file)
    assert await store.files.objects.counts() == {"deleting": 1}
    await files.close()
    await store.close()

    bucket = MemoryBucket(bucket.memory)
    bucket.refused = {file.path}
    store = await opened(database)
    files = await started(store, folder, bucket)
    assert await files.upload(file.id, None) is None
    bucket.refused = set()
    await until(lambda: not bucket.objects() and state(files, file.path) is None)
    await files.close()
    await store.close()


async def test_objects_that_cannot_be_deleted_do_not_keep_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_transfer, "_BATCH", 2)
    monkeypatch.setattr(bucket_transfer, "_DELETIONS_AT_ONCE", 2)
    bucket = MemoryBucket()
    files = await started(store, tmp_path / "files", bucket)
    sent = [await upload(files) for _ in range(5)]
    for file in sent:
        await moved(files, file.path)
    paths = sorted(file.path for file in sent)
    bucket.refused = {*paths[:2], paths[3]}  # a whole group, and one of a group
    for file in sorted(sent, key=lambda file: file.path):  # those that cannot be deleted come first
        await files.remove(file)
    await until(lambda: set(bucket.objects()) == bucket.refused)
    await until(lambda: {path for path in paths if state(files, path)} == bucket.refused)
    bucket.refused = set()
    await until(lambda: not bucket.objects())
    await files.close()


async def test_output_files_are_encrypted_before_they_are_moved(store: Store, tmp_path: Path) -> None:
    bucket, cipher = MemoryBucket(), FileCipher(os.urandom(32))
    files = await started(store, tmp_path / "files", bucket, cipher)
    made = output(files, prediction("p", "ada", "text"))
    sent = await upload(files)
    for path in (made.path, sent.path):
        await moved(files, path)
    assert all(b"content" not in each and b"secret" not in each for each in bucket.objects().values())
    assert await files.content(files.folder / made.path) == b"a secret text " * 1000
    assert await files.content(files.folder / sent.path) == CONTENT
    await files.remove_outputs(["p"])
    await store.files.remove(made.id)
    await until(lambda: list(bucket.objects()) == [sent.path])
    await files.close()


async def test_outputs_with_one_name_keep_their_content(store: Store, tmp_path: Path) -> None:
    bucket = MemoryBucket()
    files = await started(store, tmp_path / "files", bucket)
    record = prediction("p", "ada", "text")
    await store.create(record)
    folder = Path(files.outputs(record.id, 1))
    folder.mkdir(parents=True)

    def made(number: int) -> OutputFile:
        content = f"output {number}".encode()
        (folder / "out.txt").write_bytes(content)
        return OutputFile(
            id=f"id-{number}", name="out.txt", content_type="text/plain", size=len(content), sha256="",
            md5="", path=str(folder / "out.txt"),
        )  # fmt: skip

    outputs = [made(1)]
    files.register(record, outputs)
    await moved(files, outputs[0].path)
    outputs.append(made(2))
    # After a crash of the gateway, outputs whose record was not stored are registered again.
    await files.close()
    files = await started(store, tmp_path / "files", bucket)
    repeated = copy.copy(outputs[0])
    repeated.path = str(folder / "out.txt")
    files.register(record, [repeated])
    assert repeated.path == outputs[0].path
    files.register(record, outputs[1:])
    await moved(files, outputs[1].path)
    for number, file in enumerate(outputs, 1):
        assert await files.content(files.folder / file.path) == f"output {number}".encode()
    await files.close()


async def test_a_version_that_is_made_again_during_its_upload_is_in_the_bucket(
    store: Store, tmp_path: Path
) -> None:
    bucket = MemoryBucket()
    bucket.held = asyncio.Event()
    files = await started(store, tmp_path / "files", bucket)
    weights = tmp_path / "files" / "versions" / "abc" / "weights.bin"
    weights.parent.mkdir()
    weights.write_bytes(CONTENT)
    await store.registry.add_adapter(adapter("abc"))
    await files.keep_version("abc")
    await until(bucket.objects)
    await store.remove_version("abc", "me/tuned")
    await store.registry.add_adapter(adapter("abc"))
    await files.keep_version("abc")
    bucket.held.set()
    path = "versions/abc/weights.bin"
    await until(lambda: len(bucket.uploading) == 2 and state(files, path) == "stored")
    assert bucket.objects() == {path: CONTENT}
    await files.close()


async def test_files_from_before_the_bucket_are_moved(store: Store, tmp_path: Path) -> None:
    plain = FileStore(store.files, tmp_path / "files", FilesConfig())
    await plain.start()
    file = await upload(plain)
    made = output(plain, prediction("p", "ada", "text"))
    await until(lambda: not plain._unsaved)
    await plain.close()
    bucket = MemoryBucket()
    files = await started(store, tmp_path / "files", bucket)
    for path in (file.path, made.path):
        await moved(files, path)
    await files.close()

    without = FileStore(store.files, tmp_path / "files", FilesConfig())
    await without.start()
    with pytest.raises(BucketUnavailable, match=r"set files\.s3 in models\.yaml again"):
        await without.content(without.path(file))
    await without.close()


async def test_a_trained_version_is_copied_and_comes_back(store: Store, tmp_path: Path) -> None:
    folder, bucket = tmp_path / "files", MemoryBucket()
    files = await started(store, folder, bucket)
    content = folder / "versions" / "abc" / "inner"
    content.mkdir(parents=True)
    (content / "weights.bin").write_bytes(CONTENT)
    await store.registry.add_adapter(adapter("abc"))
    await files.keep_version("abc")
    path = "versions/abc/inner/weights.bin"
    await until(lambda: state(files, path) == "stored")
    assert (content / "weights.bin").exists()  # models are loaded from it
    await files.close()

    for each in (content / "weights.bin", content, content.parent):
        each.rmdir() if each.is_dir() else each.unlink()
    again = await started(store, folder, MemoryBucket(bucket.memory))
    await until((content / "weights.bin").exists)
    assert (content / "weights.bin").read_bytes() == CONTENT
    await store.remove_version("abc", "me/tuned")
    again.delete_objects()
    await until(lambda: not bucket.objects())
    await again.close()


async def test_a_missing_object_is_not_a_bucket_that_is_away(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = MemoryBucket()
    files = await started(store, tmp_path / "files", bucket)
    file = await upload(files)
    await moved(files, file.path)
    bucket.lose(file.path)
    for _ in range(2):
        with pytest.raises(ContentMissing):
            await files.content(files.path(file))
    text = f"the content of a file is missing: there is no object {file.path} in s3://bucket/prefix"
    assert caplog.messages == [text]
    bucket.lose(MARK)  # as if the whole bucket was lost
    with pytest.raises(BucketUnavailable, match=r"has no object \.appliance"):
        await files.content(files.path(file))
    await files.close()


async def test_another_machine_reads_an_object_that_the_former_head_did_not_record(
    store: Store, tmp_path: Path
) -> None:
    bucket = MemoryBucket()
    bucket.held = asyncio.Event()
    first = await started(store, tmp_path / "first", bucket)
    file = await upload(first)
    await until(bucket.objects)
    await first.close()
    assert state(first, file.path) == "uploading"
    second = await started(store, tmp_path / "second", MemoryBucket(bucket.memory))
    assert await second.content(second.path(file)) == CONTENT
    await second.remove(file)
    await until(lambda: not bucket.objects())
    await second.close()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_file_on_the_disk_of_another_machine_is_a_clear_error(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, begun: bool
) -> None:
    bucket = MemoryBucket()
    if begun:
        first = await started(store, tmp_path / "first", bucket)
        bucket.away = True
    else:
        first = FileStore(store.files, tmp_path / "first", FilesConfig())
        await first.start()
    file = await upload(first)
    made = output(first, prediction("p", "ada", "text"))
    paths = [file.path, made.path]
    await until(lambda: not first._unsaved and (not begun or all(state(first, path) for path in paths)))
    await first.close()
    caplog.clear()

    second = await started(store, tmp_path / "second", MemoryBucket(bucket.memory))
    for path in paths * 2:
        with pytest.raises(ContentMissing):
            await second.content(second.folder / path)
    assert [path for path in paths for text in caplog.messages if path in text] == paths
    await second.close()

    without = FileStore(store.files, tmp_path / "second", FilesConfig())
    await without.start()
    with pytest.raises(ContentMissing):
        await without.content(without.path(file))
    await without.close()

    again = await started(store, tmp_path / "first", MemoryBucket(bucket.memory))
    for path in paths:
        await moved(again, path)
    assert await again.content(again.path(file)) == CONTENT
    await again.close()


@pytest.mark.parametrize("other", [None, b"the id of another appliance"])
async def test_another_bucket_is_not_used(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, other: bytes | None
) -> None:
    right, wrong = MemoryBucket(), MemoryBucket()
    first = await started(store, tmp_path / "files", right)
    kept, removed = await upload(first), await upload(first)
    for file in (kept, removed):
        await moved(first, file.path)
    await first.close()
    if other is not None:
        await wrong.write(MARK, other)
    transfer = BucketTransfer(wrong, store.files, tmp_path / "files", None)
    files = FileStore(store.files, tmp_path / "files", FilesConfig(), None, transfer)
    await files.start()
    await files.remove(removed)
    waiting = await upload(files)
    await until(lambda: "files cannot be moved to the bucket" in caplog.text)
    with pytest.raises(BucketUnavailable, match=r"correct files\.s3\.url in models\.yaml and restart"):
        await files.content(files.path(kept))
    assert await files.content(files.path(waiting)) == CONTENT
    assert wrong.objects() == {}
    assert await store.files.objects.counts() == {"stored": 1, "deleting": 1}
    await files.close()

    again = await started(store, tmp_path / "files", MemoryBucket(right.memory))
    await until(lambda: right.objects().keys() == {kept.path, waiting.path})
    await again.close()


async def test_a_prefix_of_another_appliance_is_not_used(store: Store, tmp_path: Path) -> None:
    bucket = MemoryBucket()
    await bucket.write(MARK, b"the id of another appliance")
    transfer = BucketTransfer(bucket, store.files, tmp_path / "files", None)
    with pytest.raises(BucketUnavailable, match=r"set files\.s3\.url in models\.yaml to another prefix"):
        await transfer.open("uploads/a")
    await transfer.close()


async def with_versions(files: FileStore, store: Store, *versions: str) -> None:
    """Make trained versions of two files each; wait until they are in the bucket, and delete them locally."""
    for version in versions:
        folder = files.folder / "versions" / version
        folder.mkdir()
        (folder / "a.bin").write_bytes(CONTENT)
        (folder / "b.bin").write_bytes(CONTENT)
        await store.registry.add_adapter(adapter(version))
        await files.keep_version(version)
        for name in ("a.bin", "b.bin"):
            await until(partial(stored, files, f"versions/{version}/{name}"))
        shutil.rmtree(folder)


async def test_a_version_that_cannot_be_copied_back_does_not_keep_others(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket, folder = MemoryBucket(), tmp_path / "files"
    first = await started(store, folder, bucket)
    await with_versions(first, store, "aaa", "bbb")
    await first.close()
    bucket = MemoryBucket(bucket.memory)
    bucket.refused = {"versions/aaa/b.bin"}
    files = await started(store, folder, bucket)
    await until((folder / "versions" / "bbb").exists)
    assert not (folder / "versions" / "aaa").exists()
    await until(lambda: "version aaa could not be copied from the bucket" in caplog.text)
    bucket.refused = set()
    await until((folder / "versions" / "aaa").exists)
    assert (folder / "versions" / "aaa" / "b.bin").read_bytes() == CONTENT
    await files.close()


async def test_versions_are_copied_back_once_the_store_answers_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bucket, folder = MemoryBucket(), tmp_path / "files"
    first = await started(store, folder, bucket)
    await with_versions(first, store, "aaa")
    await first.close()
    list_versions, failures = store.files.objects.versions, [StoreError("the disk cannot be read")]

    async def versions() -> list[str]:
        if failures:
            raise failures.pop()
        return await list_versions()

    monkeypatch.setattr(store.files.objects, "versions", versions)
    monkeypatch.setattr(bucket_transfer, "RETRY_STORE", 0.001)
    files = await started(store, folder, MemoryBucket(bucket.memory))
    await until((folder / "versions" / "aaa").exists)
    assert caplog.messages == ["trained versions could not be listed, retrying: the disk cannot be read"]
    await files.close()


async def test_an_incomplete_version_is_not_copied_back(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket, folder = MemoryBucket(), tmp_path / "files"
    first = await started(store, folder, bucket)
    await with_versions(first, store, "bbb")
    bucket.held = asyncio.Event()
    weights = folder / "versions" / "aaa"
    weights.mkdir()
    for number in range(9):  # more than are uploaded at the same time
        (weights / f"{number}.bin").write_bytes(CONTENT)
    await store.registry.add_adapter(adapter("aaa"))
    await first.keep_version("aaa")
    assert await store.files.objects.counts() == {"stored": 2, "uploading": 9}
    assert await store.files.objects.complete("versions/aaa/0.bin")
    await first.close()
    complete = {
        each for each in snapshot.in_bucket(tmp_path / "data" / "appliance.db") if each.count("/") == 2
    }
    assert complete == {"files/versions/bbb"}
    shutil.rmtree(weights)
    leftover = weights.with_name(".of-a-training")
    leftover.mkdir()
    files = await started(store, folder, MemoryBucket(bucket.memory))
    assert not leftover.exists()
    await until((folder / "versions" / "bbb").exists)
    text = "version aaa is not copied from the bucket: 8 of its 9 files are not complete there"
    await until(lambda: text in caplog.text)
    assert [each.name for each in (folder / "versions").iterdir()] == ["bbb"]
    await files.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.bucket = MemoryBucket()
    await bench.start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


async def test_clients_are_told_when_the_bucket_is_away(api: Api, bench: Bench) -> None:
    assert isinstance(bench.bucket, MemoryBucket)
    file = (await api.post("/v1/files", files={"content": ("a.txt", CONTENT)})).json()
    await moved(bench.files, f"uploads/{file['id']}")
    download = f"/v1/files/{file['id']}/download"
    whole = await api.get(download)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    part = {"Range": "bytes=4-10", "If-Range": whole.headers["etag"]}
    assert (await api.get(download, headers=part)).content == CONTENT[4:11]
    assert (await api.get(download, headers={**part, "If-Range": '"other"'})).content == CONTENT
    input = {"text": "in a file", "file": file["urls"]["get"]}
    made = await api.post("/v1/models/test/files/predictions", json={"input": input})
    ended = await api.ended(made.json())
    assert ended["status"] == "succeeded", ended
    bench.bucket.lose(f"uploads/{file['id']}")
    lost = await api.get(download)
    assert lost.status_code == 404
    assert lost.json()["detail"].startswith("The content of the file is missing in the storage")
    bench.bucket.away = True
    refused = await api.get(download)
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("The storage with the content of the file does not answer")
    assert refused.headers["retry-after"] == "30"
    later = await api.post("/v1/files", files={"content": ("b.txt", b"later")})
    assert later.status_code == 201
    other = await api.get(f"/v1/files/{later.json()['id']}/download")
    assert other.content == b"later"
