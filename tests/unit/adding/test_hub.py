"""The real huggingface_hub client against a hub on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from appliance import weights
from appliance.adding import propose
from appliance.config import ModelConfig
from appliance.domain.errors import WeightsError
from tests.support.stub_hub import StubHub, serving_hub

FILES = {
    "config.json": json.dumps({"architectures": ["Qwen2ForCausalLM"]}).encode(),
    "model.safetensors": os.urandom(3_000_000),
    "pytorch_model.bin": b"pickle",
    "README.md": b"# Model",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    with serving_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)  # HF_ENDPOINT, which is read at import
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        served.add("org/model", FILES)
        yield served


def test_a_repository_is_added_at_its_commit_and_downloaded(hub: StubHub, tmp_path: Path) -> None:
    proposal = propose("hub:org/model", tmp_path)
    commit = hub.commits["org/model"]
    source = {"hub": "org/model", "revision": commit}
    assert proposal.entry == {"name": "org/model", "kind": "vllm", "source": source}
    assert (proposal.licence, proposal.download, proposal.stored) == ("apache-2.0", 3_000_000, 3_000_000)
    folder = weights.pull(tmp_path, proposal.config())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


PIPELINE = {
    "model_index.json": json.dumps({"_class_name": "X", "unet": ["diffusers", "U"]}).encode(),
    "unet/config.json": b"{}",
    "unet/model.safetensors": bytes(20_000),
    "unet/model.fp16.safetensors": bytes(10_000),
    "x.safetensors": bytes(20_000),
}


def test_only_the_variant_of_a_pipeline_is_downloaded(hub: StubHub, tmp_path: Path) -> None:
    hub.add("org/images", PIPELINE)
    proposal = propose("hub:org/images", tmp_path)
    assert (proposal.entry["options"], proposal.download) == ({"variant": "fp16"}, 10_000)
    folder = weights.pull(tmp_path, proposal.config())
    found = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    assert found == ["model_index.json", "unet/config.json", "unet/model.fp16.safetensors"]
    plain = proposal.config().model_copy(update={"options": type(proposal.config().options)()})
    assert weights.pull(tmp_path, plain) != folder
    assert (weights.folder(tmp_path, plain) / "unet/model.safetensors").exists()


def test_a_folder_with_all_variants_of_an_older_release_is_used(hub: StubHub, tmp_path: Path) -> None:
    hub.add("org/images", PIPELINE)
    config = propose("hub:org/images", tmp_path).config()
    plain = config.model_copy(update={"options": type(config.options)()})
    old = weights.folder(tmp_path, plain)
    (old / "unet").mkdir(parents=True)
    assert weights.folder(tmp_path, config) != old
    (old / "unet/model.fp16.safetensors").write_bytes(b"x")
    assert weights.folder(tmp_path, config) == old


def test_an_interrupted_download_goes_on_where_it_stopped(hub: StubHub, tmp_path: Path) -> None:
    content = os.urandom(24_000_000)  # the client keeps whole chunks of 10 MB
    hub.add("org/model", {**FILES, "model.safetensors": content})
    config = propose("hub:org/model", tmp_path).config()
    hub.cut = [15_000_000]
    folder = weights.pull(tmp_path, config)
    assert (folder / "model.safetensors").read_bytes() == content
    ranges = [asked for method, path, asked in hub.requests if path.startswith("/lfs/") and method == "GET"]
    starts = [int(asked.partition("=")[2].partition("-")[0]) for asked in ranges if asked]
    assert starts, ranges
    assert 0 < starts[-1] <= 15_000_000


def test_a_file_with_a_wrong_hash_is_refused(hub: StubHub, tmp_path: Path) -> None:
    config = propose("hub:org/model", tmp_path).config()
    hub.damaged = True
    with pytest.raises(
        WeightsError, match=r"model\.safetensors of org/model .* has the SHA-256 .* but the hub says"
    ):
        weights.pull(tmp_path, config)
    assert not weights.present(tmp_path, config)
    hub.damaged = False
    assert (weights.pull(tmp_path, config) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_weights_in_the_cache_of_the_hub_are_linked(hub: StubHub, tmp_path: Path) -> None:
    cached = Path(snapshot_download("org/model")) / "model.safetensors"
    config = propose("hub:org/model", tmp_path).config()
    hub.requests.clear()
    folder = weights.pull(tmp_path, config)
    assert (folder / "model.safetensors").samefile(cached)
    assert [path for method, path, _ in hub.requests if method == "GET" and path.startswith("/lfs/")] == []


def test_damaged_weights_in_the_cache_are_refused(hub: StubHub, tmp_path: Path) -> None:
    cached = Path(snapshot_download("org/model")) / "model.safetensors"
    cached.resolve().write_bytes(bytes(3_000_000))
    config = propose("hub:org/model", tmp_path).config()
    with pytest.raises(
        WeightsError, match=r"model\.safetensors of org/model is damaged in the cache .*: delete /"
    ):
        weights.pull(tmp_path, config)
    cached.resolve().unlink()
    folder = weights.pull(tmp_path, config)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_gated_repository_says_what_to_do(hub: StubHub, tmp_path: Path) -> None:
    hub.gated.add("org/model")
    with pytest.raises(WeightsError, match=r"org/model is gated: accept its licence at .*, and set HF_TOKEN"):
        propose("hub:org/model", tmp_path)


def test_a_repository_that_is_not_there_says_what_to_do(hub: StubHub, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"org/none at main .* the hub answers 401: .*correct the name, or set HF_TOKEN"
    ):
        propose("hub:org/none", tmp_path)
    with pytest.raises(WeightsError, match=r"org/model at v9 cannot be fetched from the hub: .*404"):
        propose("hub:org/model@v9", tmp_path)


def test_offline_uses_what_is_there_and_asks_for_nothing_else(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: ModelConfig = propose("hub:org/model", tmp_path).config()
    folder = weights.pull(tmp_path, config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert weights.pull(tmp_path, config) == folder
    with pytest.raises(
        WeightsError, match=r"org/other at main cannot be fetched from the hub: .*HF_HUB_OFFLINE"
    ):
        propose("hub:org/other", tmp_path)
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_a_clear_error(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(WeightsError, match=r"org/model at main cannot be fetched from the hub: .*refused"):
        propose("hub:org/model", tmp_path)
