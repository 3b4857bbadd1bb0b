"""Quantization of components: the arguments of the libraries, the memory estimate, and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.errors import LoadFailed, WeightsError
from appliance.domain.weight_size import WeightSize
from appliance.runners.diffusers import quantization
from appliance.runners.diffusers.options import DescribedDiffusersOptions, DiffusersModel, DiffusersOptions

METHODS = ["bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8", "torchao_int4", "torchao_float8"]


def recorded(name: str) -> Any:
    """Return a class whose instances are tuples of its name and its arguments."""
    return lambda *positional, **named: (name, *positional, named)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline's folder; diffusers, transformers and torchao record the arguments they get."""
    configs = {name: recorded(name) for name in ("BitsAndBytesConfig", "TorchAoConfig")}
    library = {"PipelineQuantizationConfig": lambda quant_mapping: quant_mapping}
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(**library, **configs))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(**configs))
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace())
    kinds = ("Int8WeightOnlyConfig", "Int4WeightOnlyConfig", "Float8WeightOnlyConfig")
    torchao = SimpleNamespace(**{kind: recorded(kind) for kind in kinds})
    monkeypatch.setitem(sys.modules, "torchao.quantization", torchao)
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "safety_checker": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def arguments(weights: Path, method: str, *names: str, **settings: Any) -> Any:
    options = DiffusersOptions.model_validate(
        {"quantization": {"method": method, "components": names, "settings": settings}}
    )
    dumped = options.model_dump(mode="json")
    return quantization.components("a/a", weights, dumped, "bfloat16")["quantization_config"]


def test_the_libraries_get_their_arguments(weights: Path) -> None:
    four = arguments(weights, METHODS[0], "transformer", "text_encoder", bnb_4bit_quant_type="nf4")
    expected = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_type": "nf4"}
    assert four == dict.fromkeys(("transformer", "text_encoder"), ("BitsAndBytesConfig", expected))
    eight = arguments(weights, METHODS[1], "transformer", llm_int8_threshold=5.0)
    assert eight["transformer"][1] == {"load_in_8bit": True, "llm_int8_threshold": 5.0}
    kinds = [arguments(weights, method, "transformer")["transformer"][1][0] for method in METHODS[2:]]
    assert kinds == ["Int8WeightOnlyConfig", "Int4WeightOnlyConfig", "Float8WeightOnlyConfig"]


def test_a_missing_package_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        LoadFailed,
        match=r"package bitsandbytes, which is not installed: .* `scripts/install --quantization`"
        r'.* `pip install "appliance\[quantization\]"`',
    ):
        arguments(weights, METHODS[0], "transformer")


def test_a_component_that_does_not_exist(weights: Path) -> None:
    with pytest.raises(LoadFailed, match="no component unet; its components are transformer, text_encoder"):
        arguments(weights, METHODS[0], "unet")
    with pytest.raises(LoadFailed, match="no component safety_checker"):
        arguments(weights, METHODS[0], "safety_checker")
    with pytest.raises(WeightsError, match="has no component unet with weights"):
        quantization.shares(weights, ["unet"])


def test_the_memory_estimate_follows(tmp_path: Path) -> None:
    for name, size in (("transformer", 300), ("vae", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(size))
    assert quantization.shares(tmp_path, ["transformer"]) == {"transformer": 0.75}
    (tmp_path / "small.gguf").write_bytes(bytes(50))

    def loaded(**options: Any) -> int:
        described = {"pipeline": {"width": 8, "height": 8}, "shares": {"transformer": 0.75}}
        found = DescribedDiffusersOptions.model_validate(options | described)
        return found._loaded(WeightSize(400, 200), "cuda")

    assert loaded() == 400
    method = {"components": ["transformer"]}
    assert loaded(quantization=method | {"method": "torchao_int8"}) == 100 + 150
    assert loaded(quantization=method | {"method": "bitsandbytes_4bit"}) == 100 + 75
    assert loaded(gguf={"transformer": str(tmp_path / "small.gguf")}) == 100 + 50


def test_the_memory_estimate_of_several_quantized_components(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(bytes(50))
    options = {
        "pipeline": {"width": 8, "height": 8},
        "shares": {"a": 0.5, "b": 0.25, "c": 0.25},
        "gguf": {name: str(tmp_path / f"{name}.gguf") for name in ("a", "b")},
        "quantization": {"components": ["c"], "method": "torchao_int8"},
    }
    found = DescribedDiffusersOptions.model_validate(options)
    assert found._loaded(WeightSize(4000, 2000), "cuda") == 50 + 50 + 4000 // 4 // 2


def test_a_missing_gguf_file_is_named(tmp_path: Path) -> None:
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    (tmp_path / "transformer" / "model.safetensors").write_bytes(b"x")
    file = tmp_path / "model.gguf"
    options = DiffusersOptions.model_validate({"gguf": {"transformer": str(file)}})
    with pytest.raises(WeightsError, match=rf"options\.gguf\.transformer: {file} does not exist: correct"):
        options.completed(tmp_path)
    file.write_bytes(b"x")
    options.completed(tmp_path)


def test_only_quantized_models_get_another_version() -> None:
    assert not {"quantization", "gguf"} & DiffusersOptions().model_dump().keys()


def test_a_component_is_quantized_once() -> None:
    options = {"gguf": {"unet": "/a.gguf"}, "quantization": {"method": METHODS[0], "components": ["unet"]}}
    keys = {"name": "a/a", "kind": "diffusers", "source": {"path": "/"}, "options": options}
    assert [key for key, _ in DiffusersModel.model_validate(keys).conflicts()] == ["options.gguf"]
