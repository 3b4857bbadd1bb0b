"""Secrets of the appliance are not in command lines, logs, backups, nor within reach of models."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from appliance.machine import landlock
from tests.integration.test_push import begin, over
from tests.support.appliance_process import TOKEN, Appliance

pytestmark = pytest.mark.integration

#: The value of a variable to which a secret in models.yaml refers.
REFERENCED = "secret of the provider"
#: A Cog project that searches the environment of all processes.
SPY = {
    "cog.yaml": 'run: "run.py:Runner"\n',
    "run.py": """
from pathlib import Path

from cog import BaseRunner, Input


class Runner(BaseRunner):
    def run(self, names: str = Input()) -> str:
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                text = file.read_bytes()
            except OSError:
                continue
            found += [f"{name} in {file}" for name in names.split() if f"{name}=".encode() in text]
        return "; ".join(found)
""",
}


@pytest.fixture(scope="module")
def secretive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """An appliance with a Cog project and a model of kind echo, both loaded."""
    folder = tmp_path_factory.mktemp("secrets")
    project = folder / "spy"
    project.mkdir()
    for name, text in SPY.items():
        (project / name).write_text(text)
    models = [
        {"name": "test/echo", "kind": "echo", "memory": "64MiB", "preload": True},
        {"name": "test/spy", "kind": "cog", "memory": "256MiB", "source": {"path": str(project)}},
    ]
    config = folder / "models.yaml"
    # The client of the provider is used only when someone signs in.
    oidc = {"issuer": "https://127.0.0.1", "client_id": "appliance", "client_secret": "${SIGN_ON_VALUE}"}
    variables = {"SIGN_ON_VALUE": REFERENCED}
    appliance = Appliance(folder / "home", config, ui=True, variables=variables)
    written = {"code": {"cog": True}, "models": models, "sign_on": {"oidc": oidc}}
    config.write_text(yaml.safe_dump({**written, "server": {"public_url": appliance.url}}))
    appliance.start()
    with appliance.client() as client:
        for model, input in (("echo", {"text": "x"}), ("spy", {"names": "NOTHING"})):
            body = {"input": input}
            headers = {"Prefer": "wait=60"}
            made = client.post(f"/v1/models/test/{model}/predictions", json=body, headers=headers).json()
            assert made["status"] == "succeeded", made
    yield appliance
    appliance.kill()


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # it has ended meanwhile
        return {}


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def ray_token(appliance: Appliance) -> str:
    return environment(appliance.gateway())["RAY_AUTH_TOKEN"]


def test_no_command_line_has_a_secret(secretive: Appliance) -> None:
    secrets = (TOKEN, ray_token(secretive))
    lines = [command_line(process) for process in secretive.processes()]
    assert len(lines) > 8
    assert not [line for line in lines for secret in secrets if secret in line]


def test_only_the_driver_is_started_with_the_token_of_the_administrator(secretive: Appliance) -> None:
    having = [process for process in secretive.processes() if TOKEN in environment(process).values()]
    assert [
        command_line(process) for process in having if "appliance.driver.main" not in command_line(process)
    ] == []


def test_only_ray_and_the_driver_are_started_with_the_token_of_ray(secretive: Appliance) -> None:
    secret = ray_token(secretive)
    lines = [
        command_line(process) for process in secretive.processes() if secret in environment(process).values()
    ]
    known = ("appliance.driver.main", "gcs_server", "raylet", "ray::", "cat")
    assert [line for line in lines if not line.startswith(known) and not any(k in line for k in known)] == []
    workers = [psutil.Process(pid) for pid in secretive.worker_pids()]
    assert len(workers) == 2
    for worker in workers:
        for process in (worker, *worker.children(recursive=True)):
            assert not {TOKEN, secret} & set(environment(process).values())


def test_only_the_driver_is_started_with_a_variable_to_which_a_secret_refers(secretive: Appliance) -> None:
    having = [process for process in secretive.processes() if REFERENCED in environment(process).values()]
    assert len(having) == 1
    assert "appliance.driver.main" in command_line(having[0])


def test_a_reload_and_the_ui_know_the_variable(secretive: Appliance) -> None:
    with secretive.client() as client:
        assert client.post("/admin/reload").status_code == 200
    page = httpx.get(f"{secretive.url}/", headers={"accept": "text/html"}, follow_redirects=True)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.skipif(not landlock.supported(), reason="the kernel does not support Landlock")
def test_a_cog_project_cannot_read_the_environment_of_other_processes(secretive: Appliance) -> None:
    names = "APPLIANCE_TOKEN REPLICATE_API_TOKEN RAY_AUTH_TOKEN"
    with secretive.client() as client:

        def found(names: str) -> str:
            reply = client.post(
                "/v1/models/test/spy/predictions",
                json={"input": {"names": names}},
                headers={"Prefer": "wait=60"},
            )
            output: str = reply.json()["output"]
            return output

        assert found(names) == ""
        assert "/proc/" in found("PATH"), "it sees its own processes"


#: A Cog project that searches the environment of all processes when it is imported, which its build does.
BUILD_SPY = {
    "cog.yaml": 'run: "run.py:run"\nbuild:\n  run:\n    - python run.py\n',
    "run.py": """
from pathlib import Path

for file in Path("/proc").glob("[0-9]*/environ"):
    try:
        text = file.read_bytes()
    except OSError:
        continue
    for name in ("APPLIANCE_TOKEN", "REPLICATE_API_TOKEN", "RAY_AUTH_TOKEN", "PATH"):
        if f"{name}=".encode() in text:
            print(f"found {name}", flush=True)


def run(text: str) -> str:
    return text
""",
}


@pytest.mark.skipif(not landlock.supported(), reason="the kernel does not support Landlock")
def test_the_build_of_a_pushed_project_cannot_read_the_environment_of_other_processes(
    secretive: Appliance,
) -> None:
    with secretive.client() as client:
        begun = begin(client, "build-spy", BUILD_SPY)
        build = over(client, begun)
    assert build["status"] == "succeeded", build
    found = {line for line in build["logs"].splitlines() if line.startswith("found ")}
    assert found == {"found PATH"}, "it sees its own processes only"


def test_logs_and_backups_have_no_secret(secretive: Appliance, tmp_path: Path) -> None:
    secrets = [TOKEN.encode(), ray_token(secretive).encode()]
    logs = [
        file
        for folder in ("logs", "run/logs")
        for file in (secretive.home / folder).rglob("*")
        if file.is_file()
    ]
    assert logs
    backup = tmp_path / "backup.tar"
    command = [str(secretive.program), "backup", str(backup), "--config", str(secretive.config)]
    made = subprocess.run(command, env=secretive.environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    with tarfile.open(backup) as opened:
        opened.extractall(tmp_path / "opened", filter="tar")  # it has links to interpreters
    saved = [file for file in (tmp_path / "opened").rglob("*") if file.is_file()]
    assert saved
    for file in (*logs, secretive.output, *saved):
        text = file.read_bytes()
        assert not [secret for secret in secrets if secret in text], file
