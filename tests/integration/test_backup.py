"""`appliance backup` of a busy appliance, and `appliance restore` elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, Appliance, wait_for

pytestmark = pytest.mark.integration

CLIENTS = 8
AT_ONCE = 64  # predictions of test/slow that run at the same time
CONFIG = """
models:
  - {name: test/echo, kind: echo}
  - {name: test/files, kind: echo, options: {files: true}}
  - {name: test/slow, kind: echo, options: {stream: true, concurrency: 64}}
"""


class Clients:
    """Threads that run predictions and upload files until ``stop``."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._stop = threading.Event()
        self.accepted: dict[str, str] = {}  # id of a prediction -> its text
        self.uploads: dict[str, str] = {}  # id of an upload -> SHA-256 of its content
        self.unexpected: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _work(self, caller: int) -> None:
        with self._appliance.client() as client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                text = f"{caller} {number} "
                inputs = {
                    "test/echo": {"text": text},
                    "test/files": {"file": f"data:text/plain,{text}"},
                    "test/slow": {"text": text * 20, "chunk_delay": 0.2},
                }
                model = list(inputs)[number % 3]
                body = {"version": model, "input": inputs[model]}
                self._note(self.accepted, client.post("/v1/predictions", json=body), text)
                content = text.encode() * 5000
                upload = client.post("/v1/files", files={"content": content})
                if number % 3:
                    self._note(self.uploads, upload, hashlib.sha256(content).hexdigest())
                else:  # files are also deleted during the backup
                    client.delete(f"/v1/files/{upload.json()['id']}")

    def _note(self, notes: dict[str, str], reply: httpx.Response, value: str) -> None:
        if reply.status_code == 201:
            notes[reply.json()["id"]] = value
        else:
            self.unexpected.append(reply.text)


def test_a_backup_under_load_has_all_that_was_accepted(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG)
    first = Appliance(tmp_path / "home", config)
    first.start()
    clients = Clients(first)
    clients.start()
    try:
        wait_for(lambda: len(clients.accepted) > 300 and len(clients.uploads) > 300, "enough to save")
        accepted, uploads = dict(clients.accepted), dict(clients.uploads)
        printed = first.command("backup", str(tmp_path / "b.tar.gz"), "--config", str(config))
        assert len(clients.accepted) > len(accepted), "the load had ended before the backup"
    finally:
        clients.stop()
        first.kill()
    assert clients.unexpected == []
    assert "b.tar.gz: " in printed
    second_home = tmp_path / "second home"
    shown = first.command("restore", str(tmp_path / "b.tar.gz"), "--home", str(second_home))
    assert "appliance serve --home" in shown
    second = Appliance(second_home, second_home / "config" / "models.yaml")
    second.start()
    try:
        check(second, accepted, uploads)
    finally:
        second.kill()


def check(appliance: Appliance, accepted: dict[str, str], uploads: dict[str, str]) -> None:
    """All predictions end, their files have their content, and new predictions run.

    Those that ran during the backup and had output fail as interrupted, as after a crash.
    """
    interrupted = []
    with appliance.client() as client:
        for id, text in accepted.items():
            record = wait_for(partial(ended, client, id), "the prediction to end")
            output = "".join(record["output"])
            if record["status"] == "failed":
                assert record["error"].startswith("Prediction interrupted"), record
                assert (text * 20).startswith(output)
                interrupted.append(record)
                continue
            assert record["status"] == "succeeded", record
            if record["model"] == "test/files":
                output = client.get(httpx.URL(output).path).text
            assert output == text * (20 if record["model"] == "test/slow" else 1)
        assert len(interrupted) <= AT_ONCE
        assert {record["model"] for record in interrupted} <= {"test/slow"}
        for id, digest in uploads.items():
            assert client.get(f"/v1/files/{id}").json()["checksums"]["sha256"] == digest
            content = (appliance.home / "files" / "uploads" / id).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest
        body = {"input": {"text": "after"}}
        headers = {"Prefer": "wait"}
        reply = client.post("/v1/models/test/echo/predictions", json=body, headers=headers)
        assert reply.json()["output"] == "after", reply.text


def ended(client: httpx.Client, id: str) -> dict[str, Any] | None:
    reply = client.get(f"/v1/predictions/{id}")
    assert reply.status_code == 200, f"prediction {id}: {reply.text}"
    record: dict[str, Any] = reply.json()
    return record if record["status"] in {"succeeded", "failed", "canceled", "aborted"} else None
