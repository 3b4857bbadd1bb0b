"""The Python of a bundle, with a uv that stands in for the one that downloads it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.bundle import toolchain
from appliance.domain.errors import ApplianceError


def uv(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "uv"
    program.write_text(f"#!/bin/bash\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(toolchain, "uv_program", lambda: str(program))


def test_the_python_of_uv_is_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as uv does: the folder of the version, and a link to it
    text = f"""
        [[ "$*" == "python install --no-bin --install-dir {tmp_path}/python {toolchain.VERSION}" ]] || exit 3
        mkdir -p {tmp_path}/python/cpython-3/bin
        echo run > {tmp_path}/python/cpython-3/bin/python3
        ln -s cpython-3 {tmp_path}/python/cpython
    """
    uv(tmp_path, text, monkeypatch)
    packed = toolchain.pack_python(tmp_path)
    listed = subprocess.run(["tar", "tf", packed], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["python/", "python/bin/", "python/bin/python3"]
    uv(tmp_path, "exit 3", monkeypatch)
    assert toolchain.pack_python(tmp_path) == packed


def test_a_python_that_cannot_be_downloaded_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv(tmp_path, "printf 'error: Failed to install\\n  cause: dns error\\n' >&2; exit 1", monkeypatch)
    with pytest.raises(
        ApplianceError, match=r"Failed to install: dns error: set UV_.* leave Python out with --no-"
    ):
        toolchain.pack_python(tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_a_wheel_that_cannot_be_built_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv(tmp_path, "printf 'error: Failed to build\\n' >&2; exit 1", monkeypatch)
    with pytest.raises(ApplianceError, match="the wheel of the appliance cannot be built: Failed to build"):
        toolchain.build_wheel(tmp_path, tmp_path / "built")
