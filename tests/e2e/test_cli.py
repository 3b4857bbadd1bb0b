"""The commands, run as a user runs them, against a running appliance."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import LANGUAGE_MODEL
from tests.support.appliance_process import PATIENCE, ROOT, Appliance, fetch, wait_for

pytestmark = pytest.mark.e2e

COMMAND = str(Path(sys.executable).parent / "appliance")


def appliance_command(appliance: Appliance, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=ROOT,
        env=appliance.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_run_prints_the_output(appliance: Appliance) -> None:
    ran = appliance_command(
        appliance, "run", LANGUAGE_MODEL, "-i", "prompt=What is the capital of France?", "-i", "temperature=0"
    )
    assert ran.returncode == 0, ran.stderr
    assert "Paris" in ran.stdout


def test_run_prints_all_tokens_and_ends_the_line(appliance: Appliance) -> None:
    ran = appliance_command(appliance, "run", "test/stream", "-i", "text=one two three")
    assert (ran.returncode, ran.stdout) == (0, "one two three\n"), ran.stderr


def test_run_saves_files(appliance: Appliance, tmp_path: Path) -> None:
    asked = ("run", "test/files", "-i", "text=in a file", "-i", "repeat=2", "--save", str(tmp_path))
    for names in (["0.txt", "1.txt"], ["0-2.txt", "1-2.txt"]):  # nothing is written over
        ran = appliance_command(appliance, *asked)
        assert ran.stdout.splitlines() == [str(tmp_path / name) for name in names], ran.stderr
    assert {path.read_text() for path in tmp_path.iterdir()} == {"in a file"}


def test_run_tells_why_a_prediction_failed(appliance: Appliance) -> None:
    ran = appliance_command(appliance, "run", "appliance/echo", "-i", "fail=the moon is full")
    assert ran.returncode == 1
    assert "the moon is full" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_run_names_every_wrong_input(appliance: Appliance) -> None:
    ran = appliance_command(appliance, "run", "appliance/echo", "-i", "repeat=0", "-i", "delay=long")
    assert ran.returncode == 1
    assert "input.repeat" in ran.stderr
    assert "input.delay" in ran.stderr


def test_tokens_are_printed_as_they_come_and_ctrl_c_cancels_the_prediction(
    appliance: Appliance, client: httpx.Client
) -> None:
    command = [COMMAND, "run", "test/stream", "-i", "text=one two", "-i", "chunk_delay=600"]
    process = subprocess.Popen(
        command, env=appliance.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"one "
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    id = said.split()[1]
    ended = wait_for(
        lambda: (record := client.get(f"/v1/predictions/{id}").json())["completed_at"] and record,
        "the cancelled prediction to end",
    )
    assert ended["status"] == "canceled"
    assert ended["output"] == ["one "]


def test_a_load_test_measures_tokens_and_cancels_its_predictions_at_ctrl_c(
    appliance: Appliance, client: httpx.Client
) -> None:
    asked = ("bench", "test/stream", "-i", "text=one two three", "--clients", "3", "--seconds", "2")
    # Without a delay, a fast machine would exceed the limit of predictions per minute.
    ran = appliance_command(appliance, *asked, "-i", "chunk_delay=0.05", "--json")
    found = json.loads(ran.stdout)
    assert (ran.returncode, found["errors"]) == (0, {}), ran.stderr
    assert found["succeeded"] >= 3
    assert found["time_to_first_token"]["p50"] <= found["duration"]["p50"]

    command = [COMMAND, *asked, "-i", "chunk_delay=600"]
    process = subprocess.Popen(command, env=appliance.environment, stderr=subprocess.PIPE, text=True)

    def running() -> list[dict[str, Any]]:
        return [
            record
            for record in client.get("/v1/predictions").json()["results"]
            if record["model"] == "test/stream" and record["status"] in {"starting", "processing"}
        ]

    wait_for(running, "the load test to create a prediction")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "nothing was measured" in said
    wait_for(lambda: not running(), "its prediction to be canceled")


def test_a_revoked_token_is_refused(appliance: Appliance) -> None:
    made = json.loads(appliance_command(appliance, "token", "create", "short-lived", "--json").stdout)
    headers = {"Authorization": f"Bearer {made['token']}"}
    asked = fetch(f"{appliance.url}/v1/account", headers=headers)
    assert asked.status_code == 200
    assert appliance_command(appliance, "token", "revoke", made["id"]).returncode == 0
    # The gateway looks at its tokens anew every few seconds.
    wait_for(
        lambda: fetch(f"{appliance.url}/v1/account", headers=headers).status_code == 401,
        "the token to be void",
    )


def test_status_models_and_predictions(appliance: Appliance) -> None:
    ran = json.loads(appliance_command(appliance, "run", "appliance/echo", "--json").stdout)
    status = json.loads(appliance_command(appliance, "status", "--json").stdout)
    assert "appliance/echo" in {model["name"] for model in status["models"] if model["state"] == "ready"}
    assert "appliance/echo" in appliance_command(appliance, "status").stdout
    assert LANGUAGE_MODEL in appliance_command(appliance, "models").stdout
    assert ran["id"] in appliance_command(appliance, "predictions").stdout
    assert json.loads(appliance_command(appliance, "predictions", ran["id"]).stdout) == ran


def test_a_second_serve_says_who_has_the_data_folder(appliance: Appliance) -> None:
    ran = appliance_command(appliance, "serve", "--config", str(appliance.config), "--port", "1")
    assert ran.returncode == 1
    assert appliance.process is not None
    assert f"pid {appliance.process.pid}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_doctor_sees_the_running_appliance(appliance: Appliance) -> None:
    environment = {**appliance.environment, "APPLIANCE_PORT": str(appliance.port)}
    ran = subprocess.run(
        [COMMAND, "doctor", "--config", str(appliance.config), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {finding["subject"]: finding for finding in json.loads(ran.stdout)}
    assert appliance.process is not None
    assert f"process {appliance.process.pid}" in found["other runs"]["found"]
    listening = {appliance.process.pid, appliance.gateway().pid}  # they share the socket
    assert any(f"process {pid}" in found["port"]["found"] for pid in listening)
    assert found["weights"]["state"] == "ok"
