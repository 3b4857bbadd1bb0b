"""The command line of `appliance join`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cli import main
from appliance.driver.node_settings import NodeSettings

TOKEN = f"appliance-join.secret.{'0' * 64}"


class Executed(Exception):
    """Instead of becoming the driver of a node."""


def join(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[NodeSettings, dict[str, str], list[str]]:
    """Return the settings, environment and command line of the driver."""
    calls: list[Any] = []

    def execve(_: str, command: list[str], environment: dict[str, str]) -> None:
        calls.append((command, environment))
        raise Executed

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["appliance", "join", *arguments])
    with pytest.raises(Executed):
        main()
    ((command, environment),) = calls
    assert command[1:3] == ["-m", "appliance.driver.node"]
    return msgspec.json.decode(command[3], type=NodeSettings), environment, command


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("APPLIANCE_CLUSTER_TOKEN", raising=False)
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path))


def test_an_address_and_a_token_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, environment, command = join(monkeypatch, "192.0.2.1", "--token", TOKEN, "--name", "gpu-1")
    assert (settings.heads, settings.port) == ((("192.0.2.1", 8770),), 8770)
    assert (settings.name, settings.home, settings.address) == ("gpu-1", tmp_path, None)
    assert settings.hardware.devices == "auto"
    assert environment["APPLIANCE_CLUSTER_TOKEN"] == TOKEN
    assert environment["RAY_AUTH_MODE"] == "token"
    assert TOKEN not in " ".join(command)  # all users can read the command line


def test_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_CLUSTER_TOKEN", TOKEN)
    settings, environment, _ = join(
        monkeypatch,
        *("head.example.org:9000", "--address", "192.0.2.2", "--port", "9001", "--home", "/data"),
        *("--threads", "3", "--memory", "2GiB", "--device", "small=1GiB", "--device", "large=4GiB"),
    )
    assert settings.heads == (("head.example.org", 9000),)
    assert (settings.address, settings.port, settings.home) == ("192.0.2.2", 9001, Path("/data"))
    assert (settings.hardware.threads, settings.hardware.host_memory) == (3, 2 * 2**30)
    devices = settings.hardware.devices
    assert not isinstance(devices, str)
    assert [(device.name, device.memory) for device in devices] == [("small", 2**30), ("large", 4 * 2**30)]
    assert environment["APPLIANCE_CLUSTER_TOKEN"] == TOKEN


def test_several_machines_that_can_be_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _, _ = join(monkeypatch, "192.0.2.1, head.example.org:9000", "--token", "0" * 32)
    assert settings.heads == (("192.0.2.1", 8770), ("head.example.org", 9000))


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("192.0.2.1",), "--token is missing", 1),
        (("192.0.2.1", "--token", "short"), "at least 32 characters", 1),
        (("192.0.2.1", "--token", "appliance-join.x"), "this is not a join token", 1),
        (("192.0.2.1,192.0.2.2", "--token", TOKEN), "is for one head only: choose", 1),
        (("192.0.2.1,", "--token", "0" * 32), "write HOST or HOST:PORT", 2),
        (("192.0.2.1:x", "--token", TOKEN), "write HOST or HOST:PORT", 2),
        ((":1", "--token", TOKEN), "write HOST or HOST:PORT", 2),
        (("192.0.2.1", "--token", TOKEN, "--device", "x"), "write NAME=SIZE", 2),
        (("192.0.2.1", "--token", TOKEN, "--memory", "much"), "number of bytes", 2),
    ],
)
def test_mistakes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    code: int,
) -> None:
    monkeypatch.setattr(sys, "argv", ["appliance", "join", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_settings_survive_the_command_line() -> None:
    settings = NodeSettings(
        heads=(("h", 1),),
        name="ä",
        data="/data folder",
        port=2,
        address=None,
        threads=None,
        memory=None,
        devices={},
    )
    encoded = msgspec.json.encode(settings).decode()
    assert json.loads(encoded)["data"] == "/data folder"
    assert msgspec.json.decode(encoded, type=NodeSettings) == settings
