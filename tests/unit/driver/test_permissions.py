"""Permissions of the data folder."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

from appliance.driver import permissions
from tests.support.api_client import Api
from tests.support.engine_bench import Bench


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


def test_permissions_of_existing_files_are_tightened(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere.txt"
    elsewhere.write_text("x")
    for folder in ("files/uploads", "run/inputs/p1", "weights/model", "cog/digest/bin"):
        (home / folder).mkdir(parents=True)
    for file in (
        "appliance.db",
        "files/uploads/u1",
        "run/inputs/p1/a",
        "weights/model/a",
        "cog/digest/bin/x",
    ):
        (home / file).write_text("x")
    (home / "files/uploads/u1").chmod(0o444)
    (home / "cog/digest/bin/x").chmod(0o755)
    (home / "link").symlink_to(elsewhere)
    (tmp_path / "home-link").symlink_to(home)
    permissions.tighten(tmp_path / "home-link")
    closed = {
        str(path.relative_to(home)): oct(mode(path))
        for path in sorted(home.rglob("*"))
        if not path.is_symlink() and "/" not in str(path.relative_to(home)).removeprefix("files/uploads")
    }
    assert mode(home) == 0o700
    assert closed == {
        "appliance.db": "0o600",
        "cog": "0o700",
        "files": "0o700",
        "files/uploads": "0o700",
        "run": "0o700",
        "weights": "0o700",
    }
    assert mode(home / "files/uploads/u1") == 0o400
    assert mode(home / "run/inputs/p1/a") == 0o600
    assert mode(home / "cog/digest/bin/x") == 0o755  # a link of uv's, which others may have too
    assert mode(elsewhere) == 0o644


def test_files_of_another_user_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_text("x")
    tmp_path.chmod(0o755)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    with caplog.at_level(logging.WARNING):
        permissions.tighten(tmp_path)
    assert f"chmod -R go= {tmp_path}" in caplog.text


async def test_only_the_user_may_open_new_files(api: Api, bench: Bench) -> None:
    permissions.restrict()
    reply = await api.post("/v1/files", files={"content": ("a.txt", b"hello")})
    assert reply.status_code == 201
    (upload,) = (bench.folder / "files" / "uploads").iterdir()
    assert mode(upload) == 0o400
    fresh = bench.folder / "fresh"
    fresh.mkdir()
    assert mode(fresh) == 0o700


async def test_only_the_user_may_connect_to_the_ui_socket(tmp_path: Path) -> None:
    from appliance.ui.__main__ import reserve  # Gradio takes seconds to import

    path = tmp_path / "ui.sock"
    for _ in range(2):  # also where a crash has left one
        reserve(path)
        server = uvicorn.Server(uvicorn.Config(Starlette(), uds=str(path), log_config=None, lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        assert mode(path) == 0o600
        server.should_exit = True
        await task
