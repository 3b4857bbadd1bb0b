"""Objects in a bucket are read in parts, and errors say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import certifi
import pytest

from appliance.config import S3Config
from appliance.domain.errors import ApplianceError, BucketUnavailable
from appliance.gateway.files import bucket
from appliance.gateway.files.bucket import Bucket
from tests.support.appliance_process import free_port
from tests.support.memory_bucket import MemoryBucket


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 12_345])
async def test_any_part_of_an_object_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(bucket, "_FIRST_RANGE", 100)
    monkeypatch.setattr(bucket, "_RANGE", 1000)
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    opened = MemoryBucket()
    await opened.upload("uploads/a", tmp_path / "file")
    file = opened.open("uploads/a")
    assert file.size == size
    assert file.read(size + 10) == content
    assert file.read(10) == b""
    for start in (0, 1, 99, 100, 1000, size // 2, size - 1):
        for length in (1, 100, 5000):
            if 0 <= start <= size:
                file.seek(start)
                assert file.read(length) == content[start : start + length]


async def test_a_sequential_read_needs_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_FIRST_RANGE", 100)
    monkeypatch.setattr(bucket, "_RANGE", 1000)
    requests: list[tuple[int, int]] = []

    class Counting(MemoryBucket):
        def read(self, path: str, start: int, end: int) -> bytes:
            requests.append((start, end))
            return super().read(path, start, end)

    (tmp_path / "file").write_bytes(bytes(2500))
    opened = Counting()
    await opened.upload("uploads/a", tmp_path / "file")
    file = opened.open("uploads/a")
    while file.read(64):
        pass
    assert requests == [(0, 100), (100, 1100), (1100, 2100), (2100, 2500)]


async def test_the_object_of_a_large_file_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_PART", 1024)
    content = os.urandom(10_000)
    (tmp_path / "file").write_bytes(content)
    opened = MemoryBucket()
    await opened.upload("uploads/a", tmp_path / "file")
    assert opened.objects() == {"uploads/a": content}


async def test_a_server_that_is_away_is_named_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    endpoint = f"http://127.0.0.1:{free_port()}"
    config = S3Config(
        url="s3://bucket/prefix", endpoint=endpoint, access_key_id="id", secret_access_key="hidden secret"
    )
    opened = Bucket(config)
    with pytest.raises(BucketUnavailable) as caught:
        await opened.delete("uploads/a")
    opened.close()
    assert str(caught.value).startswith(f"s3://bucket/prefix at {endpoint}: ")
    assert str(caught.value).endswith(
        "check files.s3 in models.yaml, and that the server of the bucket answers"
    )
    assert "hidden secret" not in str(caught.value)
    assert caught.value.detail == (
        "The storage with the content of the file does not answer: try again in a minute."
    )


def test_a_system_without_certificates_is_named() -> None:
    with pytest.raises(ApplianceError, match=r"files\.s3 in models\.yaml: the system has no CA certificates"):
        Bucket(S3Config(url="s3://bucket"))


async def test_an_object_that_does_not_exist() -> None:
    with pytest.raises(BucketUnavailable, match="check the name of the bucket"):
        MemoryBucket().open("uploads/a")
