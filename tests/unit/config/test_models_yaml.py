"""The shipped models.yaml: loads as it is, and documents every key of the schema with its true default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from appliance.config import (
    CogModel,
    FilesConfig,
    HardwareConfig,
    LimitsConfig,
    LoggingConfig,
    ModelConfig,
    json_schema,
    load,
)
from appliance.config.sections import MODELS, CatalogueConfig, PricesConfig, ServerConfig, UiConfig
from appliance.domain.section import Section
from appliance.runners.adapters import AdaptableModel
from appliance.runners.echo.options import EchoModel
from appliance.runners.onnx.options import SECTIONS
from appliance.runners.vllm.options import VllmModel

SHIPPED = Path(__file__).parents[3] / "models.yaml"


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


def examples(everything: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The example of each kind, which shows all of its options."""
    models = everything["models"]
    return {model["kind"]: model for model in models if model["name"].startswith("example/")}


def options_of(kind: str) -> type[Section]:
    options: type[Section] = MODELS[kind].model_fields["options"].annotation  # type: ignore[assignment] # it is one
    return options


def onnx_sections(everything: dict[str, Any]) -> dict[str, set[str]]:
    """The keys that the example of kind `onnx` shows for each type of input and output.

    `names` and `names_file` exclude each other: the example of labels shows one, and that of boxes the other.
    """
    found: dict[str, set[str]] = {}
    options = examples(everything)["onnx"]["options"]
    for group in ("inputs", "outputs"):
        for given in options[group].values():
            more = {"names", "names_file"} if given["type"] in {"labels", "boxes"} else set()
            found[given["type"].title() + group.title()[:-1]] = set(given) | more
    return found


def adapts(model: type[ModelConfig]) -> bool:
    return issubclass(model, AdaptableModel)


def test_it_loads_with_the_default_models() -> None:
    config = load(SHIPPED)
    assert [(model.name, model.kind) for model in config.models] == [
        ("appliance/smollm2-135m-instruct", "vllm"),
        ("appliance/all-minilm-l6-v2", "embeddings"),
        ("appliance/tiny-shapes", "diffusers"),
        ("appliance/whisper-tiny-en", "whisper"),
        ("appliance/piper-joe", "piper"),
        ("appliance/echo", "echo"),
    ]
    assert "meta/meta-llama-3-70b-instruct" in config.models[0].aliases
    assert config.server == ServerConfig()
    assert config.limits == LimitsConfig()
    assert config.hardware == HardwareConfig()


def test_it_loads_with_every_key_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "DATABASE_PASSWORD"):
        monkeypatch.setenv(variable, "value")
    file = tmp_path / "models.yaml"
    file.write_text(uncommented())
    files = (
        "large-language-model.md",
        "certificate.pem",
        "key.pem",
        "client.secret",
        "authorities.pem",
        "revoked.pem",
    )
    for name in files:
        (tmp_path / name).touch()
    config = load(file)
    examples = {model.kind for model in config.models if model.name.startswith("example/")}
    assert examples == MODELS.keys()
    assert config.server.public_url == "https://models.example.org"


def test_it_agrees_with_the_schema(everything: dict[str, Any]) -> None:
    jsonschema.validate(yaml.safe_load(SHIPPED.read_text()), json_schema())
    whole = {key: part for key, part in everything.items() if key != "alternatives"}
    jsonschema.validate(whole, json_schema())


def test_the_alternatives_it_shows_are_right(everything: dict[str, Any]) -> None:
    base = examples(everything)["vllm"]
    shown = list(everything["alternatives"])
    assert [sorted(alternative) for alternative in shown] == [["source"]] * 3 + [
        ["memory"],
        ["source"],
        ["source"],
    ]
    for project in (shown.pop(), shown.pop()):
        CogModel.model_validate({**examples(everything)["cog"], **project})
    for alternative in shown:
        changed = {key: value for key, value in base.items() if key != "gpu"} | alternative
        assert isinstance(ModelConfig.model_validate(changed), VllmModel)
    devices = re.search(r"^  # (devices: \[.*\])$", SHIPPED.read_text(), re.MULTILINE)
    assert devices is not None
    HardwareConfig.model_validate(yaml.safe_load(devices[1]))


def test_every_key_of_the_schema_is_documented(everything: dict[str, Any]) -> None:
    definitions = json_schema()["$defs"]
    shown = examples(everything)
    language_model = shown["vllm"]
    sources = [language_model, *everything["alternatives"]]
    keys = [sorted(place["source"]) for place in sources if "source" in place]
    documented = {
        "ServerConfig": set(everything["server"]),
        "TlsConfig": set(everything["server"]["tls"]),
        "LimitsConfig": set(everything["limits"]),
        "BudgetConfig": {key for budget in everything["limits"]["budgets"] for key in budget},
        "CollectionConfig": set(everything["collections"][0]),
        "FilesConfig": set(everything["files"]),
        "S3Config": set(everything["files"]["s3"]),
        "CodeConfig": set(everything["code"]),
        "ClusterConfig": set(everything["cluster"]),
        "ClusterPorts": set(everything["cluster"]["ports"]),
        "LoggingConfig": set(everything["logging"]),
        "TelemetryConfig": set(everything["telemetry"]),
        "AuditConfig": set(everything["audit"]),
        "AccessConfig": set(everything["access"]),
        "RightsConfig": set(everything["access"]["everybody"]),
        "GroupConfig": set(everything["access"]["groups"]["vision"]),
        "SignOnConfig": set(everything["sign_on"]),
        "OidcConfig": {*everything["sign_on"]["oidc"], "client_secret"},  # in a comment beside the file
        "PricesConfig": set(everything["prices"]),
        "CatalogueConfig": set(everything["catalogue"]),
        "RetentionConfig": set(everything["retention"]),
        "EgressConfig": set(everything["egress"]),
        "StoreConfig": set(everything["store"]),
        "UiConfig": set(everything["ui"]),
        "HardwareConfig": set(everything["hardware"]),
        "DeviceConfig": {"name", "memory"},  # their example is held by the test above
        **{
            model.__name__: {
                key for place in sources for key in place if adapts(model) or "adapter" not in key
            }
            | (set(shown["cog"]) if model is CogModel else set())
            for model in MODELS.values()
        },
        "Environment": set(language_model["environment"]),
        "AdapterConfig": set(language_model["adapters"][0]),
        "Quantization": set(shown["diffusers"]["options"]["quantization"]),
        "IpAdapter": set(shown["diffusers"]["options"]["ip_adapter"]),
        **{options_of(kind).__name__: set(shown[kind]["options"]) for kind in MODELS},
        **onnx_sections(everything),
        "FolderSource": set(keys[0]),
        "HubSource": set(keys[1]),
        "PypiSource": set(keys[2]),
        "BuiltinSource": set(keys[3]),
        "GitSource": set(keys[4]),
        "ImageSource": set(keys[5]),
    }
    assert documented == {name: set(schema["properties"]) for name, schema in definitions.items()}
    assert set(everything) - {"alternatives"} == set(json_schema()["properties"])


def test_the_defaults_it_shows_are_the_true_ones(everything: dict[str, Any]) -> None:
    language_model = examples(everything)["vllm"]
    shown: list[tuple[type[Section], dict[str, Any]]] = [
        (ServerConfig, everything["server"]),
        (LimitsConfig, everything["limits"]),
        (FilesConfig, everything["files"]),
        (UiConfig, everything["ui"]),
        (HardwareConfig, everything["hardware"]),
        (PricesConfig, everything["prices"]),
        (CatalogueConfig, everything["catalogue"]),
        (LoggingConfig, everything["logging"]),
        *((options_of(kind), shown["options"]) for kind, shown in examples(everything).items()),
    ]
    onnx = examples(everything)["onnx"]["options"]
    for group in ("inputs", "outputs"):
        for given in onnx[group].values():
            name = given["type"].title() + group.title()[:-1]
            shown.append((SECTIONS[name], {key: each for key, each in given.items() if key != "description"}))
    for section, values in shown:
        read = section.model_validate(values)
        fields = section.model_fields.items()
        defaults = {
            name: field.default
            for name, field in fields
            if not field.is_required() and field.default not in (None, (), {})
        }
        assert {name: getattr(read, name) for name in defaults} == defaults
    model = ModelConfig.model_validate(language_model)
    for name in ("aliases", "preload", "pin", "description", "visibility"):
        assert getattr(model, name) == ModelConfig.model_fields[name].default
    assert set(EchoModel.model_fields) == set(VllmModel.model_fields) - {"adapters", "adapter_sources"}
