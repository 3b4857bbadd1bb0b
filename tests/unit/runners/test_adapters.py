"""LoRA adapters in models.yaml: their keys, the inputs that name them, and the sources that are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance import config as configuration
from appliance.config import Config, ModelConfig
from appliance.domain.errors import ConfigError
from appliance.domain.interface import Interface
from appliance.runners.adapters import (
    RemoteAdapter,
    adapters_of,
    allowed,
    interface_with,
    remote,
    unfetched,
    with_downloads,
)

FRENCH = {"name": "me/french", "source": {"path": "/french"}}
PLAIN = Interface(input={"properties": {"prompt": {"type": "string", "x-order": 0}}}, output={})


def model(kind: str = "vllm", **keys: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": "me/base", "kind": kind, "source": {"path": "/weights"}, **keys}
    )


def config(folder: Path, more: str) -> Config:
    file = folder / "models.yaml"
    file.write_text(f"models:\n  - name: me/base\n    kind: vllm\n    source: {{path: weights}}\n{more}")
    return configuration.load(file)


def refusal(folder: Path, more: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config(folder, more)
    return caught.value


def test_adapters_of_a_config(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        "    adapters:\n"
        "      - {name: me/french, aliases: [french], source: {hub: me/french-lora, revision: main}}\n"
        "      - {name: me/german, source: {path: german}}\n"
        "    adapter_sources: ['hub:me/*', 'https://example.org/loras/*']\n",
    )
    names = [each.name for each in adapters_of(found.models[0])]
    assert names == ["me/french", "me/german"]
    assert [each.name for each in with_downloads(found.models)] == ["me/base", *names]


@pytest.mark.parametrize(
    ("more", "key", "said"),
    [
        ("    adapters: [{name: french, source: {path: a}}]\n", "adapters[0].name", 'should be "owner/name"'),
        ("    adapters: [{name: a/b, source: {pypi: a}}]\n", "adapters[0].source", "path or hub"),
        (
            "    adapters: [{name: me/base, source: {path: a}}]\n",
            "adapters[0].name",
            "already a name of model",
        ),
        (
            "    adapters: [{name: a/b, source: {path: a}},{name: a/c, aliases: [a/b], source: {path: .}}]\n",
            "adapters[1].aliases[0]",
            "'a/b' is already a name of model a/b",
        ),
        ("    adapter_sources: ['https://*.org/x']\n", "adapter_sources[0]", "except in the host"),
        ("    adapter_sources: ['https://a.org']\n", "adapter_sources[0]", "with its host and the path"),
        (
            "    adapter_sources: ['https://a.org/x/']\n",
            "adapter_sources[0]",
            'path of a file ".safetensors"',
        ),
        (
            "    adapter_sources: ['hub:a/b']\n    options: {max_adapters: 0}\n",
            "options.max_adapters",
            "0 allows no adapters",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, more: str, key: str, said: str) -> None:
    error = refusal(tmp_path, more)
    assert (error.model, error.key) == ("me/base", key)
    assert said in str(error)


def test_kinds_without_adapters_have_no_such_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapters"):
        model("embeddings", adapters=[FRENCH])


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("me/lora", RemoteAdapter("me/lora")),
        ("hub:me/lora@v1", RemoteAdapter("me/lora", "v1")),
        ("huggingface.co/me/lora", RemoteAdapter("me/lora")),
        (
            "https://huggingface.co/me/lora/blob/main/a.safetensors",
            RemoteAdapter("me/lora", file="a.safetensors"),
        ),
        ("https://example.org/a.safetensors", RemoteAdapter(url="https://example.org/a.safetensors")),
        ("french", None),
        ("/etc/passwd", None),
        ("../../x", None),
        ("hub:../x", None),
        ("file:///etc/passwd", None),
    ],
)
def test_the_source_that_an_input_names(value: str, source: RemoteAdapter | None) -> None:
    assert remote(value) == source


ALLOWED = ("hub:me/*", "hub:you/one", "https://example.org/loras/*")


@pytest.mark.parametrize(
    ("value", "permitted"),
    [
        ("me/anything", True),
        ("you/one", True),
        ("you/one-more", False),
        ("other/me", False),
        ("https://example.org/loras/a.safetensors?signature=1", True),
        ("https://example.org/loras/b/a.safetensors", True),
        ("https://example.org/loras/a.bin", False),
        ("https://example.org/other/a.safetensors", False),
        ("https://example.org/loras/../other/a.safetensors", False),
        ("https://example.org/loras/%2e%2e/other/a.safetensors", False),
        ("http://example.org/loras/a.safetensors", False),
        ("https://example.org.evil.example/loras/a.safetensors", False),
        ("https://example.org@evil.example/loras/a.safetensors", False),
        ("https://example.org:8443/loras/a.safetensors", False),
        ("https://[::1/loras/a.safetensors", False),
    ],
)
def test_only_allowed_sources(value: str, permitted: bool) -> None:
    source = remote(value)
    assert source is not None
    assert allowed(source, ALLOWED) is permitted
    assert not allowed(source, ())


def test_inputs_of_kinds() -> None:
    def added(kind: str, *, own: bool = False, **keys: Any) -> list[str]:
        found = interface_with(PLAIN, model(kind, **keys), own=own).input["properties"]
        assert [schema["x-order"] for schema in found.values()] == list(range(len(found)))
        return [name for name in found if name != "prompt"]

    assert added("vllm") == []
    assert added("vllm", adapters=[FRENCH]) == ["lora_weights"]
    assert added("vllm", adapter_sources=["hub:me/*"]) == ["lora_weights"]
    assert added("vllm", adapters=[FRENCH], own=True) == []
    scaled = ["lora_scale", "extra_lora", "extra_lora_scale"]
    assert added("diffusers", adapters=[FRENCH]) == ["lora_weights", *scaled]
    assert added("diffusers", options={"loras": {"ink": "/ink"}}) == ["lora_weights", *scaled]
    assert added("diffusers", adapters=[FRENCH], own=True) == scaled
    found = interface_with(PLAIN, model(adapters=[FRENCH]))
    assert "me/french" in found.input["properties"]["lora_weights"]["description"]
    assert found.aliases == {"lora": "lora_weights"}


def test_what_is_not_fetched_yet() -> None:
    input = {"lora_weights": "me/lora", "extra_lora": "/weights/ink", "prompt": "x"}
    assert unfetched(input) == {"lora_weights": "me/lora"}
