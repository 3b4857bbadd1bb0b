"""Objects in a bucket are read in parts, and errors say what to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import certifi
import obstore
import pytest

from appliance.config import S3Config
from appliance.domain.errors import ApplianceError, BucketUnavailable
from appliance.gateway.files import bucket
from appliance.gateway.files.bucket import Bucket
from tests.support.appliance_process import PATIENCE, free_port
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


def config(endpoint: str, **keys: str) -> S3Config:
    return S3Config(url="s3://bucket/prefix", endpoint=endpoint, **keys)


KEYS = {"access_key_id": "id", "secret_access_key": "hidden secret"}


async def test_a_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    endpoint = f"http://127.0.0.1:{free_port()}"
    opened = Bucket(config(endpoint, **KEYS))
    with pytest.raises(BucketUnavailable) as caught:
        await opened.delete("uploads/a")
    opened.close()
    assert str(caught.value).startswith(f"s3://bucket/prefix at {endpoint}: ")
    assert str(caught.value).endswith(
        "check files.s3 in models.yaml, and that the server of the bucket answers"
    )
    assert caught.value.detail == (
        "The storage with the content of the file does not answer: try again in a minute."
    )


REFUSAL = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SignatureDoesNotMatch</Code>'
    b"<Message>Wrong signature with the key hidden secret.</Message><StringToSign>AWS4</StringToSign></Error>"
)


class Refusing(BaseHTTPRequestHandler):
    """A server that refuses all requests, and keeps their headers."""

    def do_HEAD(self) -> None:
        self._refuse(b"")

    def do_GET(self) -> None:
        self._refuse(REFUSAL)

    def log_message(self, *_: object) -> None:
        pass

    def _refuse(self, body: bytes) -> None:
        assert isinstance(self.server, RefusingServer)
        self.server.requests.append(dict(self.headers))
        self.send_response(403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class RefusingServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusing)
        self.requests: list[dict[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingServer]:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    with RefusingServer() as server:
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("given", ["models.yaml", "the environment"])
def test_an_error_of_the_server_is_shown_without_the_secret(
    refusing: RefusingServer, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    if given == "the environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden secret")
    opened = Bucket(config(refusing.endpoint, **(KEYS if given == "models.yaml" else {})))
    with pytest.raises(BucketUnavailable) as caught:
        opened.read("uploads/a", 0, 10)
    opened.close()
    text = str(caught.value)
    assert "403 Forbidden: SignatureDoesNotMatch: Wrong signature with the key **********.: check" in text
    assert "StringToSign" not in text


def test_keys_of_models_yaml_are_not_mixed_with_a_session_token_of_the_environment(
    refusing: RefusingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    for keys in (KEYS, {}):
        opened = Bucket(config(refusing.endpoint, **keys))
        with pytest.raises(BucketUnavailable):
            opened.open("uploads/a")
        opened.close()
    own, others = refusing.requests
    assert "Credential=id/" in own["authorization"]
    assert "x-amz-security-token" not in own
    assert "Credential=other/" in others["authorization"]
    assert others["x-amz-security-token"] == "token"


def test_a_key_with_a_control_character_is_named(
    refusing: RefusingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ApplianceError, match=r"^files\.s3 in models\.yaml: access_key_id has a line end"):
        Bucket(config(refusing.endpoint, access_key_id="id\n", secret_access_key="secret"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret\n")
    with pytest.raises(ApplianceError, match=r"^files\.s3 in models\.yaml: AWS_SECRET_ACCESS_KEY has"):
        Bucket(config(refusing.endpoint))


async def test_a_value_error_of_the_client_library_is_an_error_of_the_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = MemoryBucket()

    def head(*_: object) -> None:
        raise ValueError("an invalid header")

    monkeypatch.setattr(opened, "_obstore", SimpleNamespace(head=head, exceptions=obstore.exceptions))
    with pytest.raises(BucketUnavailable, match="an invalid header: check files"):
        opened.open("uploads/a")


async def test_the_queue_of_a_bucket_that_hangs_is_bounded() -> None:
    opened = MemoryBucket()
    answer = Event()
    most = bucket._THREADS + bucket._MOST_WAITING
    reads = [asyncio.ensure_future(opened.run(answer.wait)) for _ in range(most)]
    await asyncio.sleep(0)  # all have begun
    opened._answered -= 60
    with pytest.raises(BucketUnavailable, match="32 reads have not ended and 64 wait"):
        await opened.run(answer.wait)
    for read in (reads[0], reads[-1]):  # one that has a thread, and one that waits for a thread
        read.cancel()
    await asyncio.wait({reads[0], reads[-1]})
    instead = asyncio.ensure_future(opened.run(answer.wait))
    await asyncio.sleep(0)
    with pytest.raises(BucketUnavailable):  # the thread of the first one has not ended
        await opened.run(answer.wait)
    answer.set()
    assert await asyncio.gather(*reads[1:-1], instead) == [True] * (most - 1)
    assert await opened.run(len, "free again") == 10
    opened.close()


async def test_many_reads_of_a_bucket_that_answers_slowly_all_succeed() -> None:
    opened = MemoryBucket()
    reads = [opened.run(time.sleep, 0.001) for _ in range(3 * (bucket._THREADS + bucket._MOST_WAITING))]
    assert set(await asyncio.gather(*reads)) == {None}
    opened.close()


def test_a_bucket_that_hangs_does_not_delay_the_end_of_the_process() -> None:
    program = """
import asyncio, threading
from tests.support.memory_bucket import MemoryBucket

async def main():
    bucket, begun = MemoryBucket(), threading.Event()
    def hang():
        begun.set()
        threading.Event().wait()
    read = asyncio.ensure_future(bucket.run(hang))
    await asyncio.to_thread(begun.wait)
    read.cancel()
    bucket.close()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


def test_a_system_without_certificates_is_named() -> None:
    with pytest.raises(ApplianceError, match=r"files\.s3 in models\.yaml: the system has no CA certificates"):
        Bucket(S3Config(url="s3://bucket"))


async def test_an_object_that_does_not_exist() -> None:
    with pytest.raises(BucketUnavailable, match="check the name of the bucket"):
        MemoryBucket().open("uploads/a")
