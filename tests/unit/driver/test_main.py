"""What the driver reports at its start, and when it starts again after an error."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from rich.console import Console

from appliance.config import Config
from appliance.domain.errors import ApplianceError, ConfigError, LeaseLost
from appliance.driver import main, own_process, standby, standby_http, zygote
from appliance.gateway.listener import ListeningSocket
from appliance.gateway.settings import GatewaySettings, HeadSettings
from tests.support.appliance_process import free_port


def serve(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["driver", *arguments])
    return main.main()


def test_a_data_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  - {name: test/echo, kind: echo}\n")
    home = tmp_path / "home"
    home.touch()
    assert serve(["--config", str(config), "--home", str(home)], monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"appliance: the data folder {home} cannot be used: {home}: File exists: change the owner to"
    )
    assert "--home or APPLIANCE_HOME" in said


def test_a_wrong_config_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  - {name: test/echo, kind: echo, pinn: true}\n")
    assert serve(["--config", str(config)], monkeypatch) == 2
    said = capsys.readouterr().err
    assert f"{config}:2" in said
    assert "pinn" in said


def test_a_user_without_a_home_folder_is_told_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  - {name: test/echo, kind: echo}\n")
    for name in ("APPLIANCE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert serve(["--config", str(config)], monkeypatch) == 2
    said = capsys.readouterr().err
    assert "has no home folder for the data of the appliance: set APPLIANCE_HOME or server.data" in said


@pytest.mark.parametrize(
    ("bind_address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_url_at_the_start_can_be_called(bind_address: str, url: str, tmp_path: Path) -> None:
    settings = GatewaySettings(
        config=Config.model_validate({"models": [{"name": "test/echo", "kind": "echo"}]}),
        home=tmp_path,
        host=bind_address,
        port=8000,
        devices=(),
        config_file=tmp_path / "models.yaml",
        ui=False,
        pull=False,
    )
    shown = main.banner(settings, "secret")
    assert shown.startswith(f"appliance is ready at {url}\n")
    assert f"REPLICATE_BASE_URL={url} REPLICATE_API_TOKEN=secret" in shown
    assert """replicate.run("test/echo", input={"text": "Hello!"})""" in shown


def test_a_head_that_runs_no_models_says_how_machines_join(tmp_path: Path) -> None:
    given = {
        "models": [{"name": "test/echo", "kind": "echo"}],
        "hardware": {"devices": "none"},
        "cluster": {"address": "192.0.2.10"},
    }
    settings = GatewaySettings(
        config=Config.model_validate(given),
        home=tmp_path,
        host="127.0.0.1",
        port=8000,
        devices=(),
        config_file=tmp_path / "models.yaml",
        ui=False,
        pull=False,
        head=HeadSettings("head", "192.0.2.10", "1"),
    )
    assert "Run `appliance join 192.0.2.10:8770` on other machines" in main.banner(settings, "secret")
    assert zygote.supervisors_of_head(settings) == []


async def test_the_appliance_is_called_ready_only_once_its_pages_answer(tmp_path: Path) -> None:
    replies = iter((503, 503, 303))
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[0])
        assert shown.getvalue() == ""
        headers = "location: /signin\r\ncontent-length: 0\r\nconnection: close"
        writer.write(f"HTTP/1.1 {next(replies)} x\r\n{headers}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    shown = io.StringIO()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    settings = GatewaySettings(
        config=Config.model_validate({"models": [{"name": "test/echo", "kind": "echo"}]}),
        home=tmp_path,
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        devices=(),
        config_file=tmp_path / "models.yaml",
        ui=True,
        pull=False,
    )
    async with server:
        await main.announce(settings, "secret", Console(file=shown))
    assert asked == ["GET / HTTP/1.1"] * 3
    assert shown.getvalue().startswith("appliance is ready at http://127.0.0.1:")


class Replaced(Exception):
    """The driver has replaced itself by a new one."""


def ended(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, was_running: bool, stopping: bool = False
) -> int | None:
    """Run a driver that ends with ``error``; return its exit code, or None if it is replaced by a new one."""

    def fails(_: object, __: object, state: own_process.DriverState) -> NoReturn:
        assert "APPLIANCE_WAS_RUNNING" not in os.environ  # so that child processes do not get it
        if stopping:
            state.stop.set()
        raise error

    def restart(environment: Mapping[str, str], _: Sequence[str]) -> NoReturn:
        assert environment["APPLIANCE_WAS_RUNNING"] == "1"
        raise Replaced

    with monkeypatch.context() as patch:
        patch.setattr(main, "_serve", fails)
        patch.setattr(own_process, "restart", restart)
        patch.setattr(own_process, "wait_to_restart", lambda _: None)
        patch.delenv("APPLIANCE_WAS_RUNNING", raising=False)
        if was_running:
            patch.setenv("APPLIANCE_WAS_RUNNING", "1")
        with contextlib.suppress(Replaced):
            return serve(["--config", "models.yaml"], patch)
    return None


def test_a_driver_that_was_running_starts_again_after_any_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, a network interface has no address while its cable is cut."""
    no_address = ConfigError("no network interface has this address", key="cluster.address")
    assert ended(monkeypatch, no_address, was_running=False) == 2  # the operator has to see the error
    assert ended(monkeypatch, no_address, was_running=True) is None
    slow = ApplianceError("the gateway did not answer within 120 s")
    assert ended(monkeypatch, slow, was_running=False) == 1
    assert ended(monkeypatch, slow, was_running=True) is None
    assert ended(monkeypatch, slow, was_running=True, stopping=True) == 1
    assert ended(monkeypatch, OSError("too many open files"), was_running=True) is None
    with pytest.raises(OSError, match="too many open files"):
        ended(monkeypatch, OSError("too many open files"), was_running=False)
    assert ended(monkeypatch, LeaseLost("another head"), was_running=False) is None


def test_a_driver_that_starts_again_keeps_its_data_folder_and_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if models.yaml was changed meanwhile: the accepted predictions are in the old folder."""
    config = tmp_path / "models.yaml"
    models = "models: [{name: test/echo, kind: echo}]\n"
    config.write_text(f"server: {{data: {tmp_path}/first, port: 8001}}\n{models}")

    def fails(settings: GatewaySettings) -> NoReturn:
        config.write_text(f"server: {{data: {tmp_path}/second, port: 8002}}\n{models}")
        raise LeaseLost("another head")

    def restart(_: Mapping[str, str], options: Sequence[str]) -> NoReturn:
        assert options == ("--home", f"{tmp_path}/first", "--port", "8001")
        raise Replaced

    monkeypatch.delenv("APPLIANCE_HOME", raising=False)
    monkeypatch.setattr(main, "prepare_home", fails)
    monkeypatch.setattr(own_process, "restart", restart)
    monkeypatch.setattr(own_process, "wait_to_restart", lambda _: None)
    with pytest.raises(Replaced):
        serve(["--config", str(config)], monkeypatch)


@pytest.mark.parametrize("waited", [True, False])
async def test_an_error_after_a_takeover_restarts_the_driver_only_if_it_had_waited(
    waited: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    released: list[bool] = []

    async def start(*_: object) -> None:
        pass

    async def held(*arguments: Any) -> Any:
        if waited:
            await arguments[-1](None)
        return SimpleNamespace(in_term=lambda same: same, release=lambda: released.append(True))

    async def fails(*_: object) -> NoReturn:
        raise ApplianceError("Ray did not start")

    settings = GatewaySettings(
        config=Config.model_validate({"models": [{"name": "test/echo", "kind": "echo"}]}),
        home=tmp_path,
        host="127.0.0.1",
        port=8000,
        devices=(),
        config_file=tmp_path / "models.yaml",
        ui=False,
        pull=False,
    )
    monkeypatch.setattr(zygote, "supervisors_of_head", lambda _: [SimpleNamespace(start=start)])
    monkeypatch.setattr(main, "_ray_node", lambda *_: None)
    monkeypatch.setattr(main, "_run", fails)
    monkeypatch.setattr(standby, "lease_of", lambda _: object())
    monkeypatch.setattr(standby, "wait", held)
    monkeypatch.setattr(standby_http.StandbyHttp, "forward_to", start)
    state = own_process.DriverState(past_first_start=False)
    with (
        ListeningSocket("127.0.0.1", free_port(), tmp_path / "listener.sock") as listener,
        pytest.raises(ApplianceError, match="Ray did not start") as raised,
    ):
        await main.run(settings, tmp_path, [listener], Console(file=io.StringIO()), state)
    assert state.starts_again(raised.value) is waited
    assert released == [True]
