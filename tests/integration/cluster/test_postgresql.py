"""An appliance whose database is on PostgreSQL: commands, and crashes of the server and of the gateway."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import postgres_server
from tests.support.appliance_process import PATIENCE, Appliance, wait_for
from tests.support.postgres_server import PostgresServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(postgres_server.programs() is None, reason=postgres_server.MISSING),
]

PASSWORD = "not-shown-anywhere"
CONFIG = """
store:
  url: {url}
limits:
  attempts: 3
retention:
  predictions: 30d
models:
  - {{name: test/echo, kind: echo, memory: 64MiB}}
  - {{name: test/stream, kind: echo, memory: 64MiB, options: {{stream: true}}}}
"""
OVER = {"succeeded", "failed", "canceled", "aborted"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server.running() as server:
        server.query("CREATE DATABASE appliance")
        yield server


@pytest.fixture(scope="module")
def appliance(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    folder = tmp_path_factory.mktemp("appliance")
    config = folder / "models.yaml"
    url = server.url("appliance").replace("postgres@", "postgres:${DATABASE_PASSWORD}@")
    config.write_text(CONFIG.format(url=url))
    running = Appliance(folder / "home", config, variables={"DATABASE_PASSWORD": PASSWORD})
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop()
    assert running.processes() == []


def failed(appliance: Appliance, *arguments: str) -> str:
    """Run a command that fails; return what it prints."""
    ran = subprocess.run(
        [str(appliance.program), *arguments],
        env=appliance.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode != 0, ran.stdout
    return ran.stdout + ran.stderr


def test_commands_use_the_database(appliance: Appliance, tmp_path: Path) -> None:
    config = ("--config", str(appliance.config))
    with appliance.client() as client:
        body = {"version": "test/echo", "input": {"text": "stored on PostgreSQL"}}
        made = client.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
        assert made["output"] == "stored on PostgreSQL"
        found = client.get("/admin/predictions", params={"search": "on postgresql"}).json()
        assert [each["id"] for each in found["results"]] == [made["id"]]
    assert not (appliance.home / "appliance.db").exists()
    secret = appliance.command("token", "create", "second", *config)
    assert "second" in appliance.command("token", "list", *config)
    assert secret
    exported = tmp_path / "predictions.jsonl"
    assert "1 predictions" in appliance.command("export", str(exported), *config)
    assert json.loads(exported.read_text().splitlines()[0])["id"] == made["id"]
    imported = appliance.command("import", str(exported), *config)
    assert "0 predictions imported, 1 skipped" in imported
    assert "test/echo" in appliance.command("check", *config)
    results = json.loads(appliance.command("doctor", "--json", *config))
    (database,) = [each for each in results if each["subject"] == "database"]
    assert (database["state"], database["found"]) == (
        "ok",
        "postgresql://postgres@/appliance can be written and read",
    )
    refused = failed(appliance, "backup", str(tmp_path / "backup.tar.gz"), *config)
    assert "save the database with pg_dump" in " ".join(refused.split())
    refused = failed(appliance, "encryption", "enable", *config)
    assert "does not encrypt a database on PostgreSQL" in " ".join(refused.split())


def test_a_second_appliance_on_the_same_database_is_refused(appliance: Appliance, tmp_path: Path) -> None:
    other = Appliance(tmp_path / "other", appliance.config, variables=appliance.variables)
    refused = failed(other, "serve", "--config", str(other.config), "--no-ui", "--port", str(other.port))
    assert "the database is in use by another appliance" in refused
    with appliance.client() as client:
        assert client.get("/readyz").status_code == 200


class Callers:
    """Threads that ask for predictions, whatever happens, and note what was accepted and refused."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._stop = threading.Event()
        self.accepted: dict[str, str] = {}  # id -> text
        self.refused: list[httpx.Response] = []
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(4)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _call(self, caller: int) -> None:
        number = 0
        with self._appliance.client() as client:
            while not self._stop.is_set():
                number += 1
                text = f"{caller} {number}"
                model = "test/stream" if number % 3 == 0 else "test/echo"
                body = {"version": model, "input": {"text": text, "delay": 0.05 * (number % 2)}}
                try:
                    reply = client.post("/v1/predictions", json=body)
                except httpx.HTTPError:  # the gateway is being replaced
                    continue
                if reply.status_code == 201:
                    self.accepted[reply.json()["id"]] = text
                else:
                    self.refused.append(reply)
                time.sleep(0.02)

    def more(self, count: int = 40) -> None:
        """Wait until further predictions were accepted."""
        before = len(self.accepted)
        wait_for(lambda: len(self.accepted) >= before + count, "further predictions")


def test_nothing_accepted_is_lost(appliance: Appliance, server: PostgresServer) -> None:
    with Callers(appliance) as callers:
        callers.more()
        server.stop()  # as a crash
        wait_for(lambda: callers.refused, "a refusal")
        server.start()
        callers.more()
        appliance.kill_gateway()
        callers.more()
        gateway = appliance.gateway()
        server.stop(mode="fast")
        gateway.kill()  # the next one waits for the server
        gateway.wait(PATIENCE)
        wait_for(lambda: appliance.named("ServeReplica:gateway"), "the next gateway")
        server.start()
        callers.more()
    for reply in callers.refused:
        assert reply.status_code == 503, reply.text
        assert reply.json()["title"] == "Database unavailable"
        assert reply.headers["retry-after"] == "5"

    with appliance.client() as client:

        def record(id: str) -> dict[str, Any] | None:
            found: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
            return found if found.get("status") in OVER else None

        for id, text in callers.accepted.items():
            found = wait_for(partial(record, id), f"prediction {id} to end")
            output = found["output"] if isinstance(found["output"], str) else "".join(found["output"])
            assert (found["status"], output) == ("succeeded", text), found
    server.wait_until_idle("appliance")  # also until the predictions of requests without an answer have ended
    ((rows, ids, used, ran),) = server.query(
        "SELECT count(*), count(DISTINCT id), (SELECT sum(succeeded) FROM usage),"
        " (SELECT sum(count) FROM run_counts) FROM predictions WHERE status = 'succeeded'",
        "appliance",
    )
    assert rows == ids == used == ran
    assert isinstance(rows, int)
    assert rows >= len(callers.accepted)


def test_a_gateway_whose_database_was_taken_over_stops_and_the_next_one_says_why(
    appliance: Appliance, server: PostgresServer
) -> None:
    """Afterwards the next gateway becomes the owner, because the other appliance has gone."""
    gateway = appliance.gateway()
    server.query("UPDATE store_owner SET generation = generation + 1, holder = 'another'", "appliance")
    server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = 'appliance' AND pid <> pg_backend_pid()"
    )
    with appliance.client() as client:

        def refuses() -> bool:
            try:
                return client.get("/readyz").status_code == 503
            except httpx.HTTPError:  # the appliance has stopped
                return True

        wait_for(refuses, "the refusal of writes")
        gateway.wait(PATIENCE)
        wait_for(appliance.answers, "the next gateway")
        body = {"version": "test/echo", "input": {"text": "again"}}
        made = client.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
        assert made["output"] == "again"
    assert "another has become the owner of the database" in appliance.output.read_text()


def test_the_password_is_nowhere_in_the_logs(appliance: Appliance) -> None:
    appliance.stop()
    files = [appliance.output, *(appliance.home / "logs").rglob("*")]
    for file in files:
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes(), file
