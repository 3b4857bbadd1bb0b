"""Cog projects that are built as images: which, and where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from appliance.builds import project, project_image
from appliance.config import CogModel
from appliance.domain.errors import WeightsError
from appliance.weights import locations

PLAIN = 'predict: "predict.py:Predictor"\n'
SYSTEM = PLAIN + 'build: {run: ["apt-get install -y hello"]}\n'


def model(folder: Path, text: str, **more: Any) -> CogModel:
    folder.mkdir(exist_ok=True)
    (folder / "cog.yaml").write_text(text)
    return CogModel.model_validate(
        {"name": "cog/local", "kind": "cog", "source": {"path": str(folder)}, **more}
    )


@pytest.mark.parametrize(
    ("text", "build", "why"),
    [
        (PLAIN, "auto", None),
        (PLAIN, "image", "models.yaml says so"),
        (SYSTEM, "environment", None),
        (SYSTEM, "auto", "build.run[0] of its cog.yaml changes the system"),
    ],
)
def test_a_project_is_built_as_an_image_if_it_has_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, build: str, why: str | None
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    wanted = model(tmp_path / "project", text, build=build)
    assert project_image.reason(tmp_path, wanted) == why
    source = project_image.source(tmp_path, wanted)
    found = locations.folder(tmp_path, wanted)
    if why is None:
        assert (source, found) == (None, project.folder(tmp_path, wanted))
    else:
        assert source is not None
        assert source.local is not None
        assert source.local.is_relative_to(tmp_path / "images")
        assert found.parent == tmp_path / "weights" / "image"


def test_a_project_whose_python_cannot_be_had_is_built_as_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    monkeypatch.setattr(shutil, "which", lambda name: str(programs / name))
    for name in ("python3.8", *project_image._PROGRAMS):
        (programs / name).parent.mkdir(exist_ok=True)
        (programs / name).touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    wanted = model(tmp_path / "project", PLAIN + 'build: {python_version: "3.8"}\n')
    monkeypatch.delenv("UV_PYTHON_DOWNLOADS", raising=False)
    assert project_image.reason(tmp_path, wanted) is None
    (programs / "python3.8").unlink()
    assert project_image.reason(tmp_path, wanted) is None  # uv downloads it
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    assert project_image.reason(tmp_path, wanted) == (
        "this machine has no Python 3.8, and UV_PYTHON_DOWNLOADS does not let uv download it"
    )


def test_without_buildah_an_environment_is_built_unless_models_yaml_says_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert project_image.source(tmp_path, model(tmp_path / "project", SYSTEM)) is None
    wanted = model(tmp_path / "project", PLAIN, build="image")
    with pytest.raises(WeightsError, match="buildah is not installed: install the Debian package buildah"):
        project_image.build(tmp_path, wanted, lambda _line: None)
    assert list((tmp_path / "images").iterdir()) == []


def test_another_project_or_base_gives_another_image(tmp_path: Path) -> None:
    models = [
        model(tmp_path / "a", PLAIN, build="image"),
        model(tmp_path / "a", PLAIN, build="image", base="example.org/base:1"),
        model(tmp_path / "b", SYSTEM, build="image"),
    ]
    assert len({str(project_image.source(tmp_path, each)) for each in models}) == 3
