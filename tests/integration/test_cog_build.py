"""What a Cog project may say that it needs, and where that is looked for."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from appliance.builds import project
from appliance.config import CogModel

pytestmark = pytest.mark.integration

RUN = """
import {modules}
from cog import BaseRunner


class Runner(BaseRunner):
    def run(self, text: str) -> str:
        return text
"""
#: A build backend that needs nothing: its editable wheel is a path to the folder ``src`` beside it.
BACKEND = """
import pathlib, zipfile


def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "{name}-1-py3-none-any.whl"
    info = "{name}-1.dist-info/"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("{name}.pth", str(pathlib.Path("src").absolute()))
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
SETUP = """
[project]
name = "{name}"
version = "1"

[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def wheel(folder: Path, name: str) -> None:
    """A wheel with one module."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as made:
        made.writestr(f"{name}.py", "")
        info = f"{name}-1.dist-info"
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")


def editable(folder: Path, name: str) -> None:
    """A project of Python's own sort, with one module."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / f"{name}.py").write_text("")
    (folder / "backend.py").write_text(BACKEND.format(name=name))
    (folder / "pyproject.toml").write_text(SETUP.format(name=name))


def model(folder: Path) -> CogModel:
    return CogModel.model_validate({"name": "cog/local", "kind": "cog", "source": {"path": str(folder)}})


def test_relative_paths_count_from_the_projects_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    editable(source, "whole_project")
    editable(source / "inner", "inner_project")
    for name in ("of_the_file", "of_another_file", "of_the_list"):
        wheel(source / "dist", name)
    (source / "more").mkdir()
    (source / "more" / "other.txt").write_text("./dist/of_another_file-1-py3-none-any.whl\n")
    (source / "requirements.txt").write_text(
        "./dist/of_the_file-1-py3-none-any.whl\n-r more/other.txt\n-e .\n"
    )
    (source / "cog.yaml").write_text(
        "run: run.py:Runner\nbuild:\n  python_requirements: requirements.txt\n"
        "  python_packages: [./dist/of_the_list-1-py3-none-any.whl, -e ./inner]\n"
    )
    modules = "of_the_file, of_another_file, of_the_list, whole_project, inner_project"
    (source / "run.py").write_text(RUN.format(modules=modules))
    build = project.build(tmp_path / "home", model(source))
    look = "import whole_project, inner_project; print(whole_project.__file__, inner_project.__file__)"
    command = [str(project.python(build)), "-c", look]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.split() == [
        str(build / "project/src/whole_project.py"),
        str(build / "project/inner/src/inner_project.py"),
    ]


def test_a_package_that_needs_pkg_resources_is_built_with_an_older_setuptools(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "old").mkdir(parents=True)
    (source / "old" / "of_old.py").write_text("")
    (source / "old" / "setup.py").write_text(
        "import pkg_resources\nfrom setuptools import setup\n"
        "setup(name='of_old', version='1', py_modules=['of_old'])\n"
    )
    (source / "cog.yaml").write_text("run: run.py:Runner\nbuild:\n  python_packages: [./old, cog==0.20.0]\n")
    (source / "run.py").write_text(RUN.format(modules="of_old"))
    log: list[str] = []
    build = project.build(tmp_path / "home", model(source), log.append)
    assert "==> installing with setuptools before 82: a package needs pkg_resources to be built" in log
    notes = ["the package cog 0.20.0: Cog 0.23.1 is used"]
    assert project.described(build)["notes"] == notes
