"""The wheel, installed without a checkout, and started in an empty folder by a user without a home folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.appliance_process import ROOT, Appliance, fetch, free_port, link_weights, wait_for

pytestmark = pytest.mark.e2e


class Installed(Appliance):
    """An appliance from the wheel: the user has no name and no home folder."""

    prefix = ("unshare", "--user", "--map-user=12345", "--map-group=12345")

    @property
    def environment(self) -> dict[str, str]:
        unnamed = {name: value for name, value in super().environment.items() if name not in {"HOME", "USER"}}
        return {name: value for name, value in unnamed.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([str(ROOT / "scripts" / "build-wheel"), str(folder)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel. Its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("with a space") / "venv"
    uv = str(ROOT / ".uv" / "bin" / "uv")
    run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    python = str(folder / "bin" / "python")
    run([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, str(wheel)])
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(command: list[str], variables: Mapping[str, str] | None = None) -> str:
    ran = subprocess.run(
        command, env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    tracked = run(["git", "-C", str(ROOT), "ls-files", "appliance"]).split()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {*tracked, "appliance/assets/models.yaml", "appliance/assets/manual/index.html"} <= names
    assert not [name for name in names if not name.startswith(("appliance/", "appliance-"))]


def test_it_starts_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    installed = Installed(tmp_path / "the data", None, port=free_port(), ui=True)
    installed.program, installed.folder = environment / "bin" / "appliance", folder
    link_weights(installed.home)
    installed.start()
    with installed.client() as client:
        for model, prompt in (("appliance/echo", "Hello"), ("appliance/tiny-shapes", "a red circle")):
            body = {"input": {"prompt": prompt}}
            reply = client.post(
                f"/v1/models/{model}/predictions", json=body, headers={"Prefer": "wait"}
            ).json()
            assert reply["status"] == "succeeded", reply
    html = {"Accept": "text/html"}
    wait_for(lambda: fetch(installed.url, headers=html).status_code != 503, "the UI")
    for page in ("/", "/manual/", "/manual/install/"):
        reply = fetch(installed.url + page, headers=html, follow_redirects=True)
        assert reply.status_code == 200, page
    assert installed.stop() == 0
    written = folder / "models.yaml"
    assert f"wrote {written}" in installed.output.read_text()
    assert written.read_text() == (ROOT / "models.yaml").read_text()
    assert [file.name for file in folder.iterdir()] == ["models.yaml"]
    assert not [name for name in installed.output.read_text().splitlines() if " ERROR " in name]
