"""The shipped models.yaml: loads as it is, and documents every key of the schema with its true default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from appliance.config import (
    EchoModel,
    EchoOptions,
    EmbeddingsOptions,
    FilesConfig,
    HardwareConfig,
    LimitsConfig,
    ModelConfig,
    ServerConfig,
    VllmModel,
    VllmOptions,
    json_schema,
    load,
)
from appliance.config.section import Section

SHIPPED = Path(__file__).parents[2] / "models.yaml"


def uncommented() -> str:
    """The file with every key set: "#" is taken off unless a blank and text follow, which is prose."""
    text = SHIPPED.read_text()
    start = text.index("\nserver:")
    return text[:start] + re.sub(r"^( *)#(?! \S)", r"\1", text[start:], flags=re.MULTILINE)


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    """The plain values of the file with every key set, alternatives under the keys ``alternatives``."""
    text = uncommented()
    document: dict[str, Any] = yaml.safe_load(text)
    blocks = re.findall(r"^    #\S.*\n(?:^    #  \S.*\n)*", text, re.MULTILINE)
    document["alternatives"] = [yaml.safe_load(block.replace("#", "")) for block in blocks]
    return document


def test_it_loads_with_the_default_models() -> None:
    config = load(SHIPPED)
    assert [(model.name, model.kind) for model in config.models] == [
        ("appliance/smollm2-135m-instruct", "vllm"),
        ("appliance/all-minilm-l6-v2", "embeddings"),
        ("appliance/echo", "echo"),
    ]
    assert "meta/meta-llama-3-70b-instruct" in config.models[0].aliases
    assert config.server == ServerConfig()
    assert config.limits == LimitsConfig()
    assert config.hardware == HardwareConfig()


def test_it_loads_with_every_key_set(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(uncommented())
    for name in ("large-language-model.md", "certificate.pem", "key.pem"):
        (tmp_path / name).touch()
    config = load(file)
    assert [model.kind for model in config.models] == [
        "vllm",
        "embeddings",
        "echo",
        "vllm",
        "embeddings",
        "cog",
        "echo",
    ]
    assert config.server.public_url == "https://models.example.org"


def test_it_agrees_with_the_schema(everything: dict[str, Any]) -> None:
    jsonschema.validate(yaml.safe_load(SHIPPED.read_text()), json_schema())
    whole = {key: part for key, part in everything.items() if key != "alternatives"}
    jsonschema.validate(whole, json_schema())


def test_the_alternatives_it_shows_are_right(everything: dict[str, Any]) -> None:
    base = everything["models"][3]
    shown = everything["alternatives"]
    assert [sorted(alternative) for alternative in shown] == [["source"], ["source"], ["memory"]]
    for alternative in shown:
        changed = {key: value for key, value in base.items() if key != "gpu"} | alternative
        assert isinstance(ModelConfig.model_validate(changed), VllmModel)
    devices = re.search(r"^  # (devices: \[.*\])$", SHIPPED.read_text(), re.MULTILINE)
    assert devices is not None
    HardwareConfig.model_validate(yaml.safe_load(devices[1]))


def test_every_key_of_the_schema_is_documented(everything: dict[str, Any]) -> None:
    definitions = json_schema()["$defs"]
    language_model, embeddings, cog, echo = everything["models"][3:]
    sources = [language_model, *everything["alternatives"]]
    keys = [sorted(place["source"]) for place in sources if "source" in place]
    documented = {
        "ServerConfig": set(everything["server"]),
        "TlsConfig": set(everything["server"]["tls"]),
        "LimitsConfig": set(everything["limits"]),
        "CollectionConfig": set(everything["collections"][0]),
        "FilesConfig": set(everything["files"]),
        "CodeConfig": set(everything["code"]),
        "RetentionConfig": set(everything["retention"]),
        "EgressConfig": set(everything["egress"]),
        "HardwareConfig": set(everything["hardware"]),
        "DeviceConfig": {"name", "memory"},  # their example is held by the test above
        "VllmModel": set(language_model) | {key for place in sources for key in place},
        "EchoModel": set(language_model) | {key for place in sources for key in place},
        "CogModel": set(language_model) | {key for place in sources for key in place},
        "CogOptions": set(cog["options"]),
        "EmbeddingsModel": set(language_model) | {key for place in sources for key in place},
        "EmbeddingsOptions": set(embeddings["options"]),
        "VllmOptions": set(language_model["options"]),
        "EchoOptions": set(echo["options"]),
        "FolderSource": set(keys[0]),
        "HubSource": set(keys[1]),
        "PypiSource": set(keys[2]),
    }
    assert documented == {name: set(schema["properties"]) for name, schema in definitions.items()}
    assert set(everything) - {"alternatives"} == set(json_schema()["properties"])


def test_the_defaults_it_shows_are_the_true_ones(everything: dict[str, Any]) -> None:
    language_model, embeddings, _, echo = everything["models"][3:]
    shown: list[tuple[type[Section], dict[str, Any]]] = [
        (ServerConfig, everything["server"]),
        (LimitsConfig, everything["limits"]),
        (FilesConfig, everything["files"]),
        (HardwareConfig, everything["hardware"]),
        (VllmOptions, language_model["options"]),
        (EmbeddingsOptions, embeddings["options"]),
        (EchoOptions, echo["options"]),
    ]
    for section, values in shown:
        read = section.model_validate(values)
        fields = section.model_fields.items()
        defaults = {name: field.default for name, field in fields if field.default not in (None, ())}
        assert {name: getattr(read, name) for name in defaults} == defaults
    model = ModelConfig.model_validate(language_model)
    for name in ("aliases", "preload", "pin", "description", "visibility"):
        assert getattr(model, name) == ModelConfig.model_fields[name].default
    assert set(EchoModel.model_fields) == set(VllmModel.model_fields)
