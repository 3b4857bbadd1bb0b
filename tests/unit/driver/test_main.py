"""Each obstacle to a start is reported in one sentence, before any process starts."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from appliance.config import Config
from appliance.driver import main
from appliance.gateway.settings import GatewaySettings


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
