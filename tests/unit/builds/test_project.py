"""Errors of Cog projects that cannot be built; they come before anything is created."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.builds import project
from appliance.builds.project_files import left_out
from appliance.config import CogModel
from appliance.domain.errors import WeightsError


def model(folder: Path) -> CogModel:
    return CogModel.model_validate({"name": "cog/local", "kind": "cog", "source": {"path": str(folder)}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: run.py:Runner\nbuild: [1]\n", "build should be a mapping"),
        ("run: run.py:Runner\nbuild: {python_packages: numpy}\n", "build.python_packages should be a list"),
        ("run: run.py:Runner\nconcurrency: 4\n", "concurrency should be a mapping"),
        ("run: run.py:Runner\nconcurrency: {max: many}\n", "concurrency.max should be a whole number"),
        ("[" * 5000, "nested lists and mappings"),
        ("run: \udcff\n", "is not UTF-8 text"),
        ("build: {}\n", "needs the key run"),
    ],
)
def test_a_cog_yaml_that_is_wrong_is_named_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "cog.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=f"cog/local: .*{said}"):
        project.build(tmp_path / "home", model(tmp_path / "source"))


def test_a_build_that_is_damaged_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / project.DESCRIPTION).write_text("{")
    with pytest.raises(WeightsError, match=f"{tmp_path} is damaged"):
        project.described(tmp_path)


def test_files_in_dockerignore_are_not_copied_into_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("cog.yaml", "data/a.bin", "data/keep.bin", "venv/bin/python", ".git/HEAD"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    (source / ".dockerignore").write_text("data/*\n!data/keep.bin\n")
    shutil.copytree(source, tmp_path / "copy", ignore=left_out(source))
    copied = [file.relative_to(tmp_path / "copy").as_posix() for file in (tmp_path / "copy").rglob("*")]
    assert sorted(copied) == [".dockerignore", "cog.yaml", "data", "data/keep.bin"]
