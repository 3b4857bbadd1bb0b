"""Files of a real appliance in a bucket of a real S3 server, which stops to answer and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.appliance_process import PATIENCE, Appliance, wait_for
from tests.support.s3_server import SECRET, VARIABLES, S3Server

pytestmark = pytest.mark.integration

LARGE = os.urandom(20 * 1024 * 1024)  # three parts
SMALL = b"a small secret file"
CONFIG: dict[str, Any] = {"models": [{"name": "test/files", "kind": "echo", "options": {"files": True}}]}


@pytest.fixture
def s3() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    yield server
    server.stop()


def configure(appliance: Appliance, s3: S3Server, **files: Any) -> None:
    section = {"s3": s3.settings, **files}
    appliance.config.write_text(yaml.safe_dump({**CONFIG, "files": section}))


@pytest.fixture
def appliance(tmp_path: Path, s3: S3Server) -> Iterator[Appliance]:
    appliance = Appliance(tmp_path / "home", tmp_path / "models.yaml", variables=VARIABLES)
    configure(appliance, s3)
    appliance.start()
    yield appliance
    appliance.kill()


def command(appliance: Appliance, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "appliance"), *arguments],
        env={**appliance.environment, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )


def upload(client: httpx.Client, content: bytes) -> dict[str, Any]:
    reply = client.post("/v1/files", files={"content": ("a.bin", content)})
    assert reply.status_code == 201, reply.text
    file: dict[str, Any] = reply.json()
    return file


def download(client: httpx.Client, file: dict[str, Any], **headers: str) -> httpx.Response:
    return client.get(f"/v1/files/{file['id']}/download", headers=headers)


def predict(client: httpx.Client, file: dict[str, Any]) -> str:
    """Run a prediction that copies an upload; return the URL of its output file."""
    input = {"text": "x", "file": file["urls"]["get"]}
    created = client.post("/v1/models/test/files/predictions", json={"input": input}).json()

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/v1/predictions/{created['id']}").json()
        return found if found["status"] not in {"starting", "processing"} else None

    done = wait_for(ended, "the prediction")
    assert done["status"] == "succeeded", done
    url: str = done["output"][0]
    return url


def local(appliance: Appliance) -> list[Path]:
    folder = appliance.home / "files"
    return [path for kind in ("uploads", "outputs") for path in (folder / kind).rglob("*") if path.is_file()]


def all_moved(appliance: Appliance) -> None:
    wait_for(lambda: not local(appliance), "all files to be moved to the bucket")


def test_files_are_moved_to_a_bucket_and_survive_every_fault(appliance: Appliance, s3: S3Server) -> None:
    with appliance.client() as client:
        large, small = upload(client, LARGE), upload(client, SMALL)
        output = predict(client, large)
        all_moved(appliance)
        assert len(s3.object_paths()) == 3
        assert s3.content(f"uploads/{small['id']}") == SMALL
        assert download(client, large).content == LARGE
        assert client.get(output).content == LARGE
        part = download(client, large, range="bytes=9000000-9000009")
        assert (part.status_code, part.content) == (206, LARGE[9_000_000:9_000_010])
        assert part.headers["content-range"] == f"bytes 9000000-9000009/{len(LARGE)}"
        assert download(client, small, range="bytes=100-").status_code == 416
        head = client.head(output)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(LARGE)))
        assert client.get(predict(client, large)).content == LARGE  # the input is in the bucket now
        all_moved(appliance)

        archive = appliance.home.parent / "backup.tar.gz"
        saved = command(appliance, "backup", str(archive), "--config", str(appliance.config))
        assert saved.returncode == 0, saved.stderr
        assert f"not saved, because they are in {s3.settings['url']}: 4 files" in saved.stderr

        s3.pause()
        away = download(client, small)
        assert away.status_code == 503
        assert away.json()["detail"].startswith("The storage with the content of the file does not answer")
        assert away.headers["retry-after"] == "30"
        waiting = upload(client, SMALL)
        assert download(client, waiting).content == SMALL
        found = command(appliance, "doctor", "--config", str(appliance.config), "--json")
        assert s3.settings["url"] in found.stdout
        assert SECRET not in found.stdout
        assert client.delete(f"/v1/files/{small['id']}").status_code == 204

    appliance.kill()  # after the row was stored, and before its content is in the bucket
    s3.resume()
    key = b64encode(os.urandom(32)).decode()
    appliance.variables = {**VARIABLES, "APPLIANCE_ENCRYPTION_KEY": key}
    enabled = command(appliance, "encryption", "enable", "--config", str(appliance.config))
    assert enabled.returncode == 0, enabled.stderr
    configure(appliance, s3, keep="5s")
    appliance.start()
    with appliance.client() as client:
        all_moved(appliance)
        deleted = f"uploads/{small['id']}"
        wait_for(lambda: deleted not in s3.object_paths(), "the deletion to be repeated")
        # `doctor` may have left its object, because the server did not answer.
        assert len(set(s3.object_paths()) - {".check"}) == 4
        assert SMALL not in s3.content(f"uploads/{waiting['id']}")  # it was encrypted before the start
        assert download(client, waiting).content == SMALL
        assert download(client, large).content == LARGE  # it was moved before
        expiring = upload(client, SMALL)
        made = predict(client, waiting)
        assert client.get(made).content == SMALL
        all_moved(appliance)
        outputs = [path for path in s3.object_paths() if path.startswith("outputs/")]
        assert all(SMALL not in s3.content(path) for path in outputs)
        assert client.get(made).content == SMALL
        wait_for(
            lambda: f"uploads/{expiring['id']}" not in s3.object_paths(),
            "the expired upload to leave the bucket",
        )
        assert download(client, expiring).status_code == 404
    log = appliance.output.read_text()
    assert s3.settings["url"] in log
    assert SECRET not in log
    assert json.loads(found.stdout)
