"""Errors of Cog projects that cannot be built; they come before anything is created."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import CogModel
from appliance.domain.errors import WeightsError
from appliance.weights import project


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
