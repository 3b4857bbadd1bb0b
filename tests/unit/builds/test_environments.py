"""The environments of models: what they are made of, and where they are."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from appliance.adding.unused import unused
from appliance.builds import environments
from appliance.builds.build_process import BuildProcess
from appliance.bundle import models as bundle_models
from appliance.config import Config, ModelConfig
from appliance.domain.errors import WeightsError
from appliance.driver import doctor, repair
from appliance.gateway.catalogue.catalogue import version_of


def model(*requirements: str, kind: str = "echo", **more: Any) -> ModelConfig:
    source = {} if kind == "echo" else {"source": {"path": "/tmp"}}
    values = {
        "name": "test/own",
        "kind": kind,
        "environment": {"requirements": requirements, **more},
        **source,
    }
    return ModelConfig.model_validate(values)


def plain() -> ModelConfig:
    return ModelConfig.model_validate({"name": "test/own", "kind": "echo"})


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no package index."""
    monkeypatch.setenv("UV_OFFLINE", "1")


def test_models_with_the_same_requirements_share_an_environment(tmp_path: Path) -> None:
    first = environments.folder(tmp_path, model("six", "idna==3.10"))
    assert first == environments.folder(tmp_path, model("idna==3.10", "six"))
    other = [model("six"), model("six", "idna==3.10", python="3.12"), model("six", "idna==3.10", kind="vad")]
    assert len({first, *(environments.folder(tmp_path, each) for each in other)}) == 4
    assert environments.folder(tmp_path, plain()) is None
    assert environments.interpreter(tmp_path, plain()) is None


def test_the_version_of_a_model_depends_on_its_environment() -> None:
    versions = {version_of(each, "none") for each in (plain(), model("six"), model("six", python="3.12"))}
    assert len(versions) == 3


def test_only_libraries_that_the_model_does_not_name_keep_their_version() -> None:
    wanted = model("Transformers==4.57.*", "pydantic<3", kind="embeddings").environment
    assert wanted is not None
    lines = environments._lines("embeddings", wanted)
    assert lines[:2] == ["Transformers==4.57.*", "pydantic<3"]
    assert f"torch=={metadata.version('torch')}" in lines
    assert not [line for line in lines[1:] if line.lower().startswith("transformers")]
    assert [line for line in lines if line.startswith("pydantic>=")]  # its own code needs it too
    assert not [line for line in lines if line.startswith("ray")]


def test_an_environment_has_the_files_of_the_appliance(tmp_path: Path, unreachable: None) -> None:
    inherited = metadata.version("idna")
    said: list[str] = []
    wanted = model(f"idna=={inherited}")
    environments.build(tmp_path, wanted, said.append)
    folder = environments.folder(tmp_path, wanted)
    assert folder is not None
    (site,) = folder.glob("venv/lib/python*/site-packages")
    own = Path(str(metadata.distribution("idna").locate_file("idna/core.py")))
    assert (site / "idna" / "core.py").samefile(own)
    assert not (site / "ray").exists()
    assert environments.changes(tmp_path, wanted) == []
    assert f"==> installing idna=={inherited}" in said
    environments.build(tmp_path, wanted, said.append)
    assert said.count(f"==> installing idna=={inherited}") == 1  # it was there already


def test_a_build_that_fails_names_the_package_and_leaves_nothing(tmp_path: Path, unreachable: None) -> None:
    wanted = model("no-such-package-1f6e")
    said = "model test/own: its environment cannot be built: (?s:.*)no-such-package-1f6e"
    with pytest.raises(WeightsError, match=said):
        environments.build(tmp_path, wanted)
    assert list((tmp_path / "environments").iterdir()) == []
    with pytest.raises(WeightsError, match="of model test/own is not built: run `appliance pull`"):
        environments.require(tmp_path, wanted)
    environments.require(tmp_path, plain())


def test_files_of_another_disk_become_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    environments._link(metadata.distribution("idna"), tmp_path / "venv", tmp_path / "site")
    file = tmp_path / "site" / "idna" / "core.py"
    assert file.is_symlink()
    assert file.samefile(str(metadata.distribution("idna").locate_file("idna/core.py")))


def test_another_python_gets_the_versions_of_the_appliance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    monkeypatch.setattr(BuildProcess, "run", lambda _self, command, *_, **__: commands.append(command))
    build = BuildProcess("test/own", tmp_path, lambda _line: None, {})
    pinned = environments._resolve(tmp_path / "requirements.txt", {"idna": "3.10"}, ["uv"], build)
    assert pinned.read_text() == "idna==3.10\n"
    assert commands == [["uv", "--output-file", str(pinned), str(tmp_path / "requirements.txt")]]


def test_unused_and_unfinished_environments_are_found(tmp_path: Path) -> None:
    wanted = model("six")
    used = environments.folder(tmp_path, wanted)
    assert used is not None
    old, stale, under_way = (
        used.with_name(name) for name in ("0" * 16, f".{'1' * 16}.{2**22 + 1}", f".{'2' * 16}.{os.getpid()}")
    )
    for folder in (used, old, stale, under_way):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x" * 10)
    os.link(old / "file", old / "link")
    (old / "own").write_text("x" * 5)
    found = unused(tmp_path, lambda: [Config(models=(wanted,))])
    assert [(each.path, each.size) for each in found] == [(old, 5)]
    assert repair.unfinished(tmp_path) == [stale]


def test_doctor_and_bundle_know_environments(tmp_path: Path) -> None:
    config = Config(models=(model("six"),))
    (finding,) = doctor.downloads(config, tmp_path)
    assert (finding.state, finding.subject) == ("warning", "environment")
    assert finding.fix.startswith("appliance pull test/own")
    folder = environments.folder(tmp_path, config.models[0])
    assert folder is not None
    folder.mkdir(parents=True)
    (finding,) = doctor.downloads(config, tmp_path)
    assert (finding.state, finding.found) == ("ok", f"test/own: Python at {folder}/venv/bin/python")
    assert bundle_models.choose(config, []) == list(config.models)


def test_the_python_of_the_appliance_is_the_default(tmp_path: Path) -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    named = environments.folder(tmp_path, model("six", python=own))
    assert named == environments.folder(tmp_path, model("six"))
