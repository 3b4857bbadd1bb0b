"""Installation of weights and environments from a bundle; tests/integration/test_bundle.py runs the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import config
from appliance.builds import environments
from appliance.bundle import environment_wheels, place
from appliance.domain.errors import WeightsError

TEXT = """
server:
  account: ${ACCOUNT}
models:
  - {name: test/echo, kind: echo}
  - {name: test/one, kind: echo, environment: {requirements: [b==2, a]}}
  - {name: test/other, kind: echo, environment: {requirements: [a]}}
  - {name: test/added, kind: echo, environment: {requirements: [c]}}
"""


class Bundle:
    """An unpacked bundle with weights, and with wheels for the environments of two models."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "bundle"
        self.home = folder / "a home"
        self.pending = self.root / place.PENDING
        (self.root / "weights" / "hub" / "digest").mkdir(parents=True)
        (self.root / "weights" / "hub" / "digest" / "model").write_text("weights")
        (self.root / "models.yaml").write_text(TEXT)
        self.models = config.load(self.root / "models.yaml").models
        for model in self.models[1:3]:
            (self.root / environment_wheels.folder(model)).mkdir(parents=True)

    def place(self) -> int:
        return place.main([str(self.root), str(self.home)])

    @property
    def has_weights(self) -> bool:
        return (self.home / "weights" / "hub" / "digest" / "model").exists()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("ACCOUNT", "someone")
    return Bundle(tmp_path)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The wheels with which each environment was built, by model."""
    found: dict[str, Path] = {}

    def build(_: Path, model: config.ModelConfig, *, wheels: Path) -> None:
        found[model.name] = wheels

    monkeypatch.setattr(environments, "build", build)
    return found


def test_only_environments_of_the_bundle_are_built(bundle: Bundle, built: dict[str, Path]) -> None:
    assert bundle.place() == 0
    expected = {model.name: bundle.root / environment_wheels.folder(model) for model in bundle.models[1:3]}
    assert built == expected
    assert bundle.has_weights


def test_an_environment_that_cannot_be_built_does_not_stop_the_installation(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def build(_: Path, model: config.ModelConfig, *, wheels: Path) -> None:
        tried.append(model.name)
        if model.name == "test/one":
            raise WeightsError("model test/one: no version of b")

    monkeypatch.setattr(environments, "build", build)
    assert bundle.place() == 0
    assert tried == ["test/one", "test/other"]
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "install: warning: model test/one: no version of b",
        (
            "The model test/one will not be served. Correct the reason, and run "
            f"./install --home '{bundle.home}' again."
        ),
    ]
    assert not bundle.pending.exists()


def test_environments_wait_until_the_config_can_be_read(
    bundle: Bundle,
    built: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("ACCOUNT")
    assert bundle.place() == 0
    assert bundle.has_weights
    assert bundle.pending.exists()
    assert not built
    said = capsys.readouterr().err
    assert "the environments of models are not built yet: " in said
    assert "the environment variable ACCOUNT is not set" in said
    monkeypatch.setenv("ACCOUNT", "someone")
    assert bundle.place() == 0
    assert sorted(built) == ["test/one", "test/other"]
    assert not bundle.pending.exists()


def test_without_environments_the_config_is_not_needed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ACCOUNT")
    for model in bundle.models[1:3]:
        (bundle.root / environment_wheels.folder(model)).rmdir()
    (bundle.root / environment_wheels.FOLDER).rmdir()
    assert bundle.place() == 0
    assert bundle.has_weights
    assert "environment" not in capsys.readouterr().err
