"""Packages of environments of models in a bundle; tests/integration/test_bundle.py builds one from them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from appliance import config
from appliance.builds import environments
from appliance.bundle import environment_wheels, wheels
from appliance.domain.errors import ApplianceError, WeightsError

TEXT = """
models:
  - {name: test/echo, kind: echo}
  - {name: test/one, kind: echo, environment: {requirements: [b==2, a]}}
  - {name: test/same, kind: echo, environment: {requirements: [a, b==2]}}
  - {name: test/other, kind: echo, environment: {requirements: [a]}}
"""


@pytest.fixture
def models(tmp_path: Path) -> list[config.ModelConfig]:
    file = tmp_path / "models.yaml"
    file.write_text(TEXT)
    return list(config.load(file).models)


def test_models_with_the_same_packages_share_a_folder(models: list[config.ModelConfig]) -> None:
    one, same, other = (environment_wheels.folder(model) for model in models[1:])
    assert one == same != other


def write_lock(root: Path, text: str) -> None:
    (root / "requirements").mkdir(exist_ok=True)
    (root / "requirements" / "cpu.lock").write_text(text)


def test_a_bundle_for_other_processors_is_refused(
    models: list[config.ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.11.0+cpu")
    write_lock(tmp_path, "")
    environment_wheels.check_variant(models, "cpu", tmp_path)
    environment_wheels.check_variant(models[:1], "gpu", tmp_path)  # which has no environment
    with pytest.raises(ApplianceError, match=r"model test/one: .* its environment, .* installed for cpu: "):
        environment_wheels.check_variant(models, "gpu", tmp_path)


def test_packages_that_are_older_than_the_lock_file_are_refused(
    models: list[config.ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.11.0+cpu")
    installed = {"numpy": "2.1", "torch": "2.11.0+cpu", "unlocked": "1"}
    monkeypatch.setattr(environments, "inherited", lambda _: installed)
    entries = (
        "# comment\n"
        "numpy==2.1 ; python_full_version >= '3.11' \\\n    --hash=sha256:12\n    # via torch\n"
        "numpy==1.9 ; python_full_version < '3.11' \\\n    --hash=sha256:12\n"
        "other==1\n"
    )
    write_lock(tmp_path, f"{entries}torch==2.11.0+cpu\n")
    environment_wheels.check_variant(models, "cpu", tmp_path)
    write_lock(tmp_path, f"{entries}torch==2.12.0+cpu\n")
    environment_wheels.check_variant(models[:1], "cpu", tmp_path)  # which has no environment
    with pytest.raises(
        ApplianceError,
        match=r"test/one: .* torch is installed here in version 2\.11\.0\+cpu, "
        r"and cpu\.lock has 2\.12\.0\+cpu: run scripts/install",
    ):
        environment_wheels.check_variant(models, "cpu", tmp_path)


def test_each_environment_is_built_once_and_an_error_names_the_model(
    models: list[config.ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(_: Path, model: config.ModelConfig) -> None:
        built.append(model.name)
        if model.name == "test/other":
            raise WeightsError("model test/other: its environment cannot be built")

    monkeypatch.setattr(environments, "build", build)
    monkeypatch.setattr(environments, "changes", lambda *_: [environments.Change("gone", None, "1")])
    with wheels.Index() as index:
        found = environment_wheels.resolve(tmp_path, models[:3], index)
        assert found == {environment_wheels.folder(models[1]): []}
        assert built == ["test/one"]
        with pytest.raises(ApplianceError, match="model test/other: its environment cannot be built"):
            environment_wheels.resolve(tmp_path, models, index)
