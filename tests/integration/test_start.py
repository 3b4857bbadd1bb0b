"""What a start tells the user and the service manager; a start that fails leaves nothing behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from appliance.cli.serve import environment
from tests.support.appliance_process import PATIENCE, TOKEN, Appliance, fetch, has_ipv6, wait_for

pytestmark = pytest.mark.integration


def test_ray_cannot_start_in_a_folder_with_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)  # paths of sockets end at 107 bytes
    long.mkdir()
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  - {name: test/echo, kind: echo}\n")
    appliance = Appliance(tmp_path / "home", config)
    command = [str(Path(sys.executable).parent / "appliance"), "serve", "--config", str(config), "--no-ui"]
    environment = {**appliance.environment, "APPLIANCE_PORT": str(appliance.port), "TMPDIR": str(long)}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("appliance: Ray did not start: ")
    assert "set TMPDIR to another folder with a short path" in ran.stderr
    (kept,) = long.glob("appliance-*")
    assert f"are below {kept}" in ran.stderr
    assert list(kept.glob("ray/session_*/logs")), "where Ray puts them"
    assert kept.stat().st_mode & 0o777 == 0o700, "Ray's own folders are open to everybody"
    assert "Traceback" not in ran.stdout + ran.stderr
    assert appliance.processes() == []


def test_a_call_of_ray_before_its_start_or_after_its_end_starts_no_other_ray() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "import ray; ray.put(1)"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 1
    assert "Ray has not been started" in ran.stderr


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path_factory.mktemp("manager") / "notify"))
        manager.settimeout(PATIENCE)
        yield manager


@pytest.fixture(scope="module")
def appliance(manager: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """An appliance that a service manager has started; it listens on IPv6 if the machine has it."""
    folder = tmp_path_factory.mktemp("appliance")
    config = folder / "models.yaml"
    config.write_text(
        "server: {drain_timeout: 20}\nmodels:\n  - {name: test/echo, kind: echo, options: {stream: true}}\n"
    )
    host = "::1" if has_ipv6() else None
    variables = {"NOTIFY_SOCKET": manager.getsockname()}
    appliance = Appliance(folder / "home", config, ui=True, host=host, variables=variables)
    with appliance.running():
        yield appliance


def test_the_service_manager_is_told_when_the_appliance_is_ready(
    appliance: Appliance, manager: socket.socket
) -> None:
    assert manager.recv(4096).decode() == f"READY=1\nSTATUS=serving at {appliance.url}"


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
def test_the_api_and_the_ui_answer_at_an_ipv6_address(appliance: Appliance) -> None:
    assert appliance.url == f"http://[::1]:{appliance.port}"
    with appliance.client() as client:
        body = {"version": "test/echo", "input": {"text": "a b"}}
        record = client.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
        assert record["output"] == ["a ", "b"], record
        assert all(url.startswith(f"{appliance.url}/") for url in record["urls"].values())
        assert "event: done" in client.get(record["urls"]["stream"]).text
    wait_for(lambda: fetch(f"{appliance.url}/signin").status_code == 200, "the UI")
    with httpx.Client(
        base_url=appliance.url, headers={"Accept": "text/html"}, timeout=PATIENCE, trust_env=False
    ) as browser:
        form = {"token": TOKEN}
        assert browser.post("/signin", data=form, headers={"Origin": appliance.url}).status_code == 303
        assert browser.get("/explore").status_code == 200


def test_the_service_manager_is_told_when_the_appliance_stops(
    appliance: Appliance, manager: socket.socket
) -> None:
    """Keep this test last: it stops the appliance."""
    assert appliance.stop() == 0
    while (message := manager.recv(4096).decode()).startswith("READY="):
        pass  # this test runs alone
    assert message == "STOPPING=1\nEXTEND_TIMEOUT_USEC=80000000\nSTATUS=stopping"
