"""A takeover with files in a bucket: the other machine has no file of the former head on its disk."""

from __future__ import annotations

import os
import shutil
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.integration.cluster.test_standby import ended
from tests.support import postgres_server
from tests.support.appliance_process import PATIENCE, wait_for
from tests.support.cluster import Head
from tests.support.network_namespaces import Network, available
from tests.support.postgres_server import PostgresServer
from tests.support.s3_server import VARIABLES, S3Server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="needs root and iproute2, for network namespaces"),
    pytest.mark.skipif(postgres_server.programs() is None, reason=postgres_server.MISSING),
]

HEADS: Final = ("alpha", "beta")
SMALL: Final = b"a small secret file"
#: Large enough for a multipart upload, which leaves no object unless it is completed.
LARGE: Final = os.urandom(20 * 1024 * 1024)
MISSING_TEXT: Final = "The content of the file is missing in the storage of the appliance"


class Heads:
    """Two machines that can be the head, with one database, one bucket, and folders of their own."""

    def __init__(self, network: Network, database: PostgresServer, s3: S3Server, folder: Path) -> None:
        key = b64encode(os.urandom(32)).decode()
        self._variables = {**VARIABLES, "APPLIANCE_ENCRYPTION_KEY": key}
        self.alpha, self.beta = (self._head(name, network, database, s3, folder) for name in HEADS)

    def _head(
        self, name: str, network: Network, database: PostgresServer, s3: S3Server, folder: Path
    ) -> Head:
        config = {
            "store": {"url": database.url("appliance")},
            "cluster": {"name": name, "address": network.addresses[name], "lost_after": "6s"},
            "files": {"s3": s3.settings},
            "models": [{"name": "test/files", "kind": "echo", "options": {"files": True}}],
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return Head(folder / name, path, network, name, self._variables)

    def start(self) -> None:
        """Start the head, then the standby: first without the key of the files, then with the key."""
        self.alpha.start()
        self.beta.start_waiting()
        assert self.beta.process is not None
        assert self.beta.process.wait(PATIENCE) == 1
        assert "encryption.json is missing: it has the data key" in self.beta.output.read_text()
        shutil.copy(self.alpha.home / "encryption.json", self.beta.home)
        self.beta.start_waiting()
        wait_for(lambda: "alpha at" in self.beta.output.read_text(), "the standby")

    def stop(self) -> None:
        for head in (self.alpha, self.beta):
            if head.process is not None and head.process.poll() is None:
                assert head.stop() == 0, head.output.read_text()
            assert head.processes() == []


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network(HEADS)
    yield network
    network.close()


@pytest.fixture
def s3(network: Network) -> Iterator[S3Server]:
    server = S3Server(network.own_address)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def heads(network: Network, s3: S3Server, tmp_path: Path) -> Iterator[Heads]:
    with postgres_server.running(address=network.own_address) as database:
        database.query("CREATE DATABASE appliance")
        heads = Heads(network, database, s3, tmp_path)
        try:
            heads.start()
            yield heads
        finally:
            s3.resume()
            heads.stop()


def test_the_new_head_has_the_files_in_the_bucket(heads: Heads, s3: S3Server) -> None:
    alpha, beta = heads.alpha, heads.beta
    with alpha.client() as client:
        moved = upload(client, SMALL)
        moved_output = predict(client, moved)
        wait_until_moved(alpha)
        s3.pause()  # from now on the bucket does not answer; then the head dies
        unmoved, deleted = upload(client, LARGE), upload(client, LARGE)
        unmoved_output = predict(client, unmoved)
    alpha.kill()
    left = local(alpha)
    s3.resume()

    wait_for(beta.answers, "the standby as the head")
    with beta.client() as client:
        assert download(client, moved).content == SMALL
        assert client.get(moved_output).content == SMALL
        for reply in (download(client, unmoved), client.get(unmoved_output)):
            assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")
            assert reply.json()["detail"].startswith(MISSING_TEXT)
        failed = run(client, unmoved)
        assert failed["status"] == "failed"
        assert MISSING_TEXT in failed["error"]
        assert client.delete(f"/v1/files/{deleted['id']}").status_code == 204
        later = upload(client, SMALL[::-1])
        later_output, again = predict(client, later), predict(client, moved)
        wait_until_moved(beta)
        assert download(client, later).content == SMALL[::-1]
        assert client.get(later_output).content == SMALL[::-1]
        assert client.get(again).content == SMALL
    assert local(alpha) == left

    alpha.start_waiting()
    wait_for(lambda: "beta at" in alpha.output.read_text(), "the former head as the standby")
    assert beta.stop() == 0
    wait_for(alpha.answers, "the former head as the head again")
    with alpha.client() as client:
        assert download(client, unmoved).content == LARGE
        wait_until_moved(alpha)
        assert download(client, unmoved).content == client.get(unmoved_output).content == LARGE
        assert download(client, deleted).status_code == 404
        assert client.get(moved_output).content == client.get(again).content == SMALL
        assert client.get(later_output).content == SMALL[::-1]
    assert len(s3.object_paths()) == 7
    assert f"uploads/{deleted['id']}" not in s3.object_paths()


def upload(client: httpx.Client, content: bytes) -> dict[str, Any]:
    file: dict[str, Any] = client.post("/v1/files", files={"content": content}).raise_for_status().json()
    return file


def download(client: httpx.Client, file: dict[str, Any]) -> httpx.Response:
    return client.get(f"/v1/files/{file['id']}/download")


def run(client: httpx.Client, file: dict[str, Any]) -> dict[str, Any]:
    """Run a prediction that copies an upload, and return it."""
    input = {"text": "x", "file": file["urls"]["get"]}
    made = client.post("/v1/models/test/files/predictions", json={"input": input}).raise_for_status().json()
    prediction: dict[str, Any] = wait_for(partial(ended, client, made["id"]), "the prediction")
    return prediction


def predict(client: httpx.Client, file: dict[str, Any]) -> str:
    """Run a prediction that copies an upload; return the path of the URL of its output file."""
    done = run(client, file)
    assert done["status"] == "succeeded", done
    return httpx.URL(done["output"][0]).path


def local(head: Head) -> list[Path]:
    """Return the uploads and output files on the disk of a machine."""
    folder = head.home / "files"
    return [path for kind in ("uploads", "outputs") for path in (folder / kind).rglob("*") if path.is_file()]


def wait_until_moved(head: Head) -> None:
    wait_for(lambda: not local(head), "all files to be moved to the bucket")
