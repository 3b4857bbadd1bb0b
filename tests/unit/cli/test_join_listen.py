"""The options of `appliance join` for answering HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cli import main
from appliance.driver import certificate
from appliance.driver.node_http import Listen
from appliance.driver.node_settings import NodeSettings
from appliance.nodes.identity import TOKEN_VARIABLE

TOKEN = "a token that is long enough for a cluster"


class Executed(Exception):
    """Instead of becoming the driver of a node."""


def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> NodeSettings:
    """Return the settings that the driver gets."""
    commands: list[list[str]] = []

    def execve(_: str, command: list[str], __: Any) -> None:
        commands.append(command)
        raise Executed

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    arguments = ["join", "192.0.2.1", "--home", str(tmp_path / "home"), *options]
    monkeypatch.setattr(sys, "argv", ["appliance", *arguments])
    with pytest.raises(Executed):
        main()
    return msgspec.json.decode(commands[0][-1], type=NodeSettings)


def test_a_node_answers_no_http_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = settings(monkeypatch, tmp_path)
    assert found.listen is None
    assert found.http is None


@pytest.mark.parametrize(
    ("given", "listen"),
    [
        ("0.0.0.0:8000", Listen("0.0.0.0", 8000)),
        ("[::]:80", Listen("::", 80)),
        ("gpu-2.example:443", Listen("gpu-2.example", 443)),
    ],
)
def test_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, listen: Listen) -> None:
    found = settings(monkeypatch, tmp_path, "--listen", given, "--address", "192.0.2.7")
    assert found.listen == listen
    assert found.http is not None
    assert (found.http.heads, found.http.own_address) == ((("192.0.2.1", 8770),), "192.0.2.7")
    assert found.http.cluster == str(tmp_path / "home" / "cluster")


def test_a_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, key = certificate.write(tmp_path, [])
    options = ("--listen", "127.0.0.1:8443", "--certificate", str(file), "--key", str(key))
    found = settings(monkeypatch, tmp_path, *options)
    assert found.listen == Listen("127.0.0.1", 8443, str(file), str(key))
    assert found.listen.tls() is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--listen", "8000"), "write HOST:PORT"),
        (("--listen", "host:"), "write HOST:PORT"),
        (("--listen", "host:70000"), "write HOST:PORT"),
        (("--listen", ":8000", "--certificate", "a"), "give both --certificate and --key"),
        (("--certificate", "a", "--key", "b"), "--certificate needs --listen"),
        (("--listen", "h:1", "--certificate", "/missing.pem", "--key", "/key.pem"), "/missing.pem"),
    ],
)
def test_mistakes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(sys, "argv", ["appliance", "join", "192.0.2.1", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
