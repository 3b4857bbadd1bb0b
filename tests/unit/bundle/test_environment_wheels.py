"""Packages of environments of models in a bundle; tests/integration/test_bundle.py builds one from them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from appliance import config
from appliance.builds import environments
from appliance.bundle import environment_wheels, place, wheels
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


def test_a_bundle_for_other_processors_is_refused(
    models: list[config.ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.11.0+cpu")
    environment_wheels.check_variant(models, "cpu")
    environment_wheels.check_variant(models[:1], "gpu")  # which has no environment
    with pytest.raises(
        ApplianceError, match=r"model test/one: a bundle for gpu cannot contain its environment"
    ):
        environment_wheels.check_variant(models, "gpu")


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


def test_only_environments_of_the_bundle_are_built_there(
    models: list[config.ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = {}

    def build(_: Path, model: config.ModelConfig, *, wheels: Path) -> None:
        built[model.name] = wheels

    monkeypatch.setattr(environments, "build", build)
    folder = tmp_path / environment_wheels.folder(models[1])
    folder.mkdir(parents=True)
    place.build_environments(tmp_path, tmp_path / "home", models)
    assert built == {"test/one": folder, "test/same": folder}
