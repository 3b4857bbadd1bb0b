"""What `kill -9` does to a running appliance: nothing accepted is lost, and the next prediction works."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.support.appliance_process import PATIENCE, Appliance, wait_for

pytestmark = pytest.mark.integration

CONFIG = """
models:
  - name: test/echo
    kind: echo
    memory: 64MiB
  - name: test/stream
    kind: echo
    memory: 64MiB
    options:
      stream: true
  - name: test/files
    kind: echo
    memory: 64MiB
    options:
      files: true
"""
#: Proxies that nothing listens at: what the appliance says to itself must not go there.
VARIABLES = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
TERMINAL = {"succeeded", "failed", "canceled", "aborted"}


def create(client: httpx.Client, model: str = "test/echo", **input: Any) -> str:
    reply = client.post("/v1/predictions", json={"version": model, "input": input})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
        except httpx.TransportError:  # the gateway is being replaced
            return None
        return record if record.get("status") in TERMINAL else None

    found: dict[str, Any] = wait_for(look, f"prediction {id} to end")
    return found


def begun(client: httpx.Client, id: str) -> None:
    wait_for(lambda: client.get(f"/v1/predictions/{id}").json()["status"] != "starting", "a start")


def recent(client: httpx.Client) -> list[dict[str, Any]]:
    return list(client.get("/v1/predictions").json()["results"])


def outputs(
    client: httpx.Client, address: str, headers: dict[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """The ids and texts of the output events of a stream."""
    with client.stream("GET", httpx.URL(address).raw_path.decode(), headers=headers) as reply:
        event: dict[str, str] = {}
        for line in reply.iter_lines():
            field, _, value = line.partition(":")
            if line:
                event[field] = value.removeprefix(" ")
                continue
            if event.get("event") == "output":
                yield event["id"], event["data"]
            event = {}


def works(client: httpx.Client) -> None:
    record = ended(client, create(client, text="still here"))
    assert (record["status"], record["output"]) == ("succeeded", "still here")


def test_a_killed_engine_host_costs_no_prediction(appliance: Appliance) -> None:
    with appliance.client() as client:
        works(client)
        ids = [create(client, text=f"text {number}", delay=3.0) for number in range(8)]
        begun(client, ids[0])
        for pid in appliance.worker_pids():
            os.kill(pid, signal.SIGKILL)
        records = [ended(client, id) for id in ids]
        assert [record["status"] for record in records] == ["succeeded"] * 8
        assert [record["output"] for record in records] == [f"text {number}" for number in range(8)]
        works(client)


def test_output_that_was_seen_is_kept_and_the_reason_is_true(appliance: Appliance) -> None:
    with appliance.client() as client:
        id = create(client, "test/stream", text="word ", repeat=2, chunk_delay=600)
        wait_for(lambda: client.get(f"/v1/predictions/{id}").json().get("output"), "output")
        for pid in appliance.worker_pids():
            os.kill(pid, signal.SIGKILL)
        record = ended(client, id)
        assert record["status"] == "failed"
        assert "Prediction interrupted; please retry (code: PA)" in record["error"]
        assert "signal 9" in record["error"]
        assert record["output"]
        works(client)


def test_a_prediction_that_kills_its_host_every_time_fails_in_the_end(appliance: Appliance) -> None:
    with appliance.client() as client:
        record = ended(client, create(client, crash=True))
        assert record["status"] == "failed"
        assert "signal 9" in record["error"]
        works(client)


def test_a_killed_runner_replica_costs_no_prediction(appliance: Appliance) -> None:
    with appliance.client() as client:
        works(client)
        ids = [create(client, text=f"text {number}", delay=3.0) for number in range(4)]
        begun(client, ids[0])
        workers = appliance.worker_pids()
        for process in appliance.named("ServeReplica:runner-"):
            process.kill()
        assert [ended(client, id)["status"] for id in ids] == ["succeeded"] * 4
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in workers), "the orphaned workers to end")
        works(client)


def test_a_killed_gateway_costs_no_prediction_and_runs_none_twice(appliance: Appliance) -> None:
    with appliance.client() as client:
        works(client)
        ids = [create(client, text=f"text {number}", delay=6.0) for number in range(4)]
        streamed = create(client, "test/stream", text="word ", repeat=60, chunk_delay=0.1)
        for id in (ids[0], streamed):
            begun(client, id)
        workers = sorted(appliance.worker_pids())
        address = client.get(f"/v1/predictions/{streamed}").json()["urls"]["stream"]
        seen = list(itertools.islice(outputs(client, address), 5))
        appliance.kill_gateway()
    with appliance.client() as client:  # at once: it is answered by the next gateway, and never refused
        assert client.get(f"/v1/predictions/{streamed}").status_code == 200
        last, _ = seen[-1]
        seen += outputs(client, address, {"Last-Event-ID": last})
        assert "".join(text for _, text in seen) == "word " * 60
        assert [ended(client, id)["status"] for id in ids] == ["succeeded"] * 4
        record = ended(client, streamed)
        assert "".join(record["output"]) == "word " * 60
        assert sorted(appliance.worker_pids()) == workers
        works(client)


def test_ray_runs_only_what_is_needed_at_the_priority_of_the_appliance(appliance: Appliance) -> None:
    """Actors of Ray have a lower priority by default, so any other program would slow them down."""
    wait_for(lambda: appliance.named("ray::ServeReplica:runner"), "the spare replica")
    commands = " ".join(" ".join(process.cmdline()) for process in appliance.processes())
    for unused in ("autoscaler", "log_monitor", "dashboard/dashboard.py"):
        assert unused not in commands
    actors = [process.nice() for process in appliance.named("ray::Serve")]
    assert len(actors) >= 3  # the controller, the gateway and the replica
    assert set(actors) == {psutil.Process().nice()}


def test_a_gateway_killed_before_it_commits_a_result_has_told_nobody(appliance: Appliance) -> None:
    """Another process holds the write lock of the database, so the result is computed but not committed."""
    with appliance.client() as client:
        works(client)
        assert ended(client, create(client, "test/files"))["status"] == "succeeded"
    database = sqlite3.connect(appliance.home / "appliance.db", isolation_level=None)
    folder = appliance.home / "files" / "outputs"
    before = set(folder.glob("*/1/*"))
    answers: list[httpx.Response] = []

    def ask() -> None:
        with appliance.client() as client, contextlib.suppress(httpx.TransportError):
            body = {"version": "test/files", "input": {"text": "computed"}}
            answers.append(client.post("/v1/predictions", json=body, headers={"Prefer": "wait"}))

    database.execute("BEGIN IMMEDIATE")
    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: set(folder.glob("*/1/*")) - before, "the output of the model")
    appliance.kill_gateway()
    database.execute("ROLLBACK")
    database.close()
    asking.join(PATIENCE)
    assert not asking.is_alive()
    assert answers == []
    with appliance.client() as client:
        found = [each["id"] for each in recent(client) if each["input"] == {"text": "computed"}]
        assert found == []
        works(client)


def test_an_edited_config_is_applied_and_outlives_the_gateway(appliance: Appliance, tmp_path: Path) -> None:
    stream = {"name": "test/stream", "kind": "echo", "memory": "64MiB", "options": {"stream": True}}
    late = {"name": "test/late", "kind": "echo", "memory": "64MiB"}
    voice = {"name": "test/voice", "kind": "piper", "source": {"path": str(tmp_path / "none")}}
    changed = {"name": "test/echo", "kind": "echo", "memory": "64MiB", "aliases": ["old/echo"]}

    files = {"name": "test/files", "kind": "echo", "memory": "64MiB", "options": {"files": True}}

    def edit(*models: dict[str, Any]) -> None:
        appliance.config.write_text(yaml.safe_dump({"models": [*models, files]}))

    def command() -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "appliance"), "reload"]
        return subprocess.run(
            command, env=appliance.environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    with appliance.client() as client:
        works(client)
        running = create(client, text="from before", delay=4.0)
        begun(client, running)
        workers = appliance.worker_pids()
        edit({**changed, "options": {"stream": True}}, stream, late)
        ran = command()
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == "added test/late\nchanged test/echo: aliases, options.stream\n"
        assert ended(client, create(client, "test/late", text="new"))["output"] == "new"
        assert ended(client, running)["output"] == "from before"
        assert ended(client, create(client, "old/echo", text="now"))["output"] == ["now"]
        assert not set(workers) <= set(appliance.worker_pids())  # loaded anew

        edit({**changed, "colour": "red"})
        ran = command()
        assert ran.returncode != 0
        assert f"{appliance.config}:" in ran.stderr  # and the line
        assert "colour" in ran.stderr
        assert appliance.process is not None
        appliance.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "models.yaml is not reloaded: " in appliance.output.read_text(), "a refusal")
        assert ended(client, create(client, "test/late", text="still"))["output"] == "still"

        edit(changed, late, voice)
        appliance.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "removed test/stream" in appliance.output.read_text(), "the reload")
        assert client.post("/v1/predictions", json={"version": "test/stream", "input": {}}).status_code == 422
        zygote = appliance.home / "logs" / "zygote.log"
        wait_for(lambda: "imported av" in zygote.read_text(), "the zygote to learn the new kind")

        edit({**changed, "colour": "red"})  # what the next gateway must not read
        appliance.kill_gateway()
        wait_for(appliance.answers, "the next gateway")
    with appliance.client() as client:
        assert ended(client, create(client, "test/late", text="again"))["output"] == "again"
        assert client.get("/v1/models/test/stream").status_code == 404
        works(client)


def test_a_killed_driver_leaves_nothing_that_outlives_the_next_start(appliance: Appliance) -> None:
    appliance.config.write_text(CONFIG)  # the test before has written a wrong one
    with appliance.client() as client:
        works(client)
    before = {process.pid for process in appliance.processes()}
    assert appliance.process is not None
    appliance.process.kill()
    appliance.process.wait(PATIENCE)
    appliance.start()  # at once: the old gateway may still answer
    wait_for(lambda: not before & {process.pid for process in appliance.processes()}, "the old ones to end")
    wait_for(appliance.answers, "the new gateway")
    with appliance.client() as client:
        works(client)
    assert not before & {process.pid for process in appliance.processes()}


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_lost_process_of_ray_costs_no_prediction(appliance: Appliance, name: str) -> None:
    with appliance.client() as client:
        works(client)
        ids = [create(client, text=f"text {number}", delay=3.0) for number in range(4)]
        begun(client, ids[0])
        before = {process.pid for process in appliance.processes()}
        (lost,) = (process for process in appliance.processes() if process.name() == name)
        lost.kill()
        lost.wait(PATIENCE)
        assert appliance.process is not None
        before -= {appliance.process.pid}  # which starts anew in its own place
        wait_for(
            lambda: not before & {process.pid for process in appliance.processes()}, "the others to be ended"
        )
        wait_for(appliance.answers, "the next gateway")
    with appliance.client() as client:
        assert [ended(client, id)["status"] for id in ids] == ["succeeded"] * 4
        works(client)
    assert appliance.process.poll() is None


def test_a_stopped_appliance_finishes_what_runs(appliance: Appliance) -> None:
    """The last test: the appliance is not started again."""
    with appliance.client() as client:
        works(client)
        id = create(client, text="last words", delay=2.0)
        begun(client, id)
        assert appliance.stop() == 0
    assert appliance.processes() == []
    exported = appliance.home / "predictions.jsonl"
    appliance.command("export", str(exported), "--config", str(appliance.config))
    records = map(json.loads, exported.read_text().splitlines())
    (record,) = (each for each in records if each["id"] == id)
    assert (record["status"], record["output"]) == ("succeeded", "last words")
