"""Encrypted files: any part can be read, and a changed file is refused."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.domain.errors import StoreError
from appliance.gateway.files.encrypted_file import CHUNK, EncryptedReader, FileCipher
from tests.support.api_client import Api
from tests.support.appliance_process import until
from tests.support.engine_bench import Bench

KEY = os.urandom(32)
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)


def encrypted(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    FileCipher(KEY).encrypt(path)
    return path


def content_of(path: Path, start: int, end: int) -> bytes:
    reader = FileCipher(KEY).open(path)
    assert isinstance(reader, EncryptedReader)
    with contextlib.closing(reader):
        return b"".join(reader.pieces(start, end))


@pytest.mark.parametrize("size", SIZES)
def test_every_part_can_be_read(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    path = encrypted(tmp_path, content)
    for start in (0, 1, CHUNK - 1, CHUNK, size // 2):
        for end in (start, start + 1, CHUNK, CHUNK + 1, size):
            if start <= end <= size:
                assert content_of(path, start, end) == content[start:end]
    FileCipher(KEY).copy_content(tmp_path / "file", tmp_path / "clear")
    assert (tmp_path / "clear").read_bytes() == content


@pytest.mark.parametrize("size", SIZES)
def test_it_can_be_written_in_pieces(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    with (tmp_path / "file").open("wb") as file:
        writer = FileCipher(KEY).writer(file)
        pieces = io.BytesIO(content)
        while piece := pieces.read(10_007):
            writer.write(piece)
        writer.close()
    assert content_of(tmp_path / "file", 0, size) == content


def test_the_content_is_not_readable_and_sealing_twice_changes_nothing(tmp_path: Path) -> None:
    path = encrypted(tmp_path, b"a secret text " * 10_000)
    path.chmod(0o400)
    before = path.read_bytes()
    assert b"secret" not in before
    FileCipher(KEY).encrypt(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_files_that_are_not_encrypted_with_this_key_are_known(tmp_path: Path) -> None:
    path = encrypted(tmp_path, b"text")
    assert FileCipher(KEY).is_encrypted(path)
    assert not FileCipher(os.urandom(32)).is_encrypted(path)
    path.write_bytes(b"appliance file 1" + b"x" * 100)
    assert not FileCipher(KEY).is_encrypted(path)


def test_changed_truncated_and_reordered_files_are_refused(tmp_path: Path) -> None:
    good = encrypted(tmp_path, os.urandom(3 * CHUNK)).read_bytes()
    path, step = tmp_path / "file", CHUNK + 16
    header = len(good) - 3 * step
    first, second, third = (good[header + number * step :][:step] for number in range(3))
    reordered = good[:header] + second + first + third
    for bad in (good[:-1], good[:-step], good[:-20] + bytes([good[-20] ^ 1]) + good[-19:], reordered):
        path.write_bytes(bad)
        with pytest.raises(StoreError, match="is damaged"):
            content_of(path, 0, 3 * CHUNK)


@pytest.mark.parametrize("size", SIZES)
def test_an_opened_file_is_read_as_before_while_it_is_encrypted(tmp_path: Path, size: int) -> None:
    content, path = os.urandom(size), tmp_path / "file"
    path.write_bytes(content)
    cipher = FileCipher(KEY)
    with contextlib.closing(cipher.open(path)) as reader:
        cipher.encrypt(path)
        assert cipher.is_encrypted(path)
        assert reader.size == size
        assert b"".join(reader.pieces(0, size)) == content
        assert b"".join(reader.pieces(size // 2, size)) == content[size // 2 :]
    cipher.copy_content(path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.cipher = FileCipher(KEY)
    await bench.start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


async def test_uploads_and_outputs_are_encrypted_and_served(api: Api, bench: Bench) -> None:
    cipher = FileCipher(KEY)
    content = bytes(range(256)) * 1000 + b"the end"
    upload = (await api.post("/v1/files", files={"content": ("a b.bin", content)})).json()
    (stored,) = (bench.folder / "files" / "uploads").iterdir()
    assert bytes(range(256)) not in stored.read_bytes()
    assert upload["size"] == len(content)
    path = f"/v1/files/{upload['id']}/download"
    whole = await api.get(path)
    assert (whole.content, whole.headers["accept-ranges"]) == (content, "bytes")
    assert "a%20b.bin" in whole.headers["content-disposition"]
    for asked, start, end in (("0-9", 0, 10), ("100000-", 100_000, None), ("-7", -7, None), ("5-5", 5, 6)):
        part = await api.get(path, headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, content[start:end]), asked
        assert part.headers["content-range"].endswith(f"/{len(content)}")
    assert (await api.get(path, headers={"Range": f"bytes={len(content)}-"})).status_code == 416
    assert (await api.get(path, headers={"Range": "bytes=0-1,3-4"})).content == content

    input = {"text": "in a file", "file": upload["urls"]["get"]}
    made = await api.post("/v1/models/test/files/predictions", json={"input": input})
    ended = await api.ended(made.json())
    assert ended["status"] == "succeeded", ended
    outputs = [(await api.get(url)).content for url in ended["output"]]
    assert content in outputs
    folder = bench.folder / "files" / "outputs"
    files = [each for each in folder.rglob("*") if each.is_file() and not each.name.startswith(".")]
    await until(lambda: all(cipher.is_encrypted(each) for each in files))
    assert [(await api.get(url)).content for url in ended["output"]] == outputs
    assert len(files) == len(outputs)


async def test_files_that_are_not_encrypted_yet_are_served(api: Api, bench: Bench) -> None:
    content = os.urandom(3 * CHUNK)
    upload = (await api.post("/v1/files", files={"content": ("a.bin", content)})).json()
    (stored,) = (bench.folder / "files" / "uploads").iterdir()
    stored.unlink()
    stored.write_bytes(content)
    path = f"/v1/files/{upload['id']}/download"
    assert (await api.get(path)).content == content
    part = await api.get(path, headers={"Range": f"bytes=7-{CHUNK}"})
    assert (part.status_code, part.content) == (206, content[7 : CHUNK + 1])
    input = {"file": upload["urls"]["get"]}
    made = await api.post("/v1/models/test/files/predictions", json={"input": input})
    ended = await api.ended(made.json())
    assert [(await api.get(url)).content for url in ended["output"]] == [content]
    assert stored.read_bytes() == content
    stored.unlink()
    assert (await api.get(path)).status_code == 404


async def test_a_damaged_input_fails_its_prediction_and_frees_its_slot(
    api: Api, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    upload = (await api.post("/v1/files", files={"content": ("a.bin", os.urandom(CHUNK))})).json()
    (stored,) = (bench.folder / "files" / "uploads").iterdir()
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1])
    url = upload["urls"]["get"]
    for _ in range(5):  # more than can run at once
        made = await api.post("/v1/models/test/files/predictions", json={"input": {"file": url}})
        ended = await api.ended(made.json())
        assert ended["status"] == "failed"
        reason = "the stored file is damaged: upload or create it again"
        assert ended["error"] == f"input.file: {url} cannot be fetched: {reason}"
    assert f"cannot be read: {stored}: " in caplog.text  # for the operator
    made = await api.post("/v1/models/test/files/predictions", json={"input": {"text": "next"}})
    assert (await api.ended(made.json()))["status"] == "succeeded"
