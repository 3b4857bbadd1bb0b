"""Quantization of a pipeline's components, by bitsandbytes, torchao, or in GGUF files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from appliance.domain.errors import LoadFailed, WeightsError
from appliance.domain.section import Section
from appliance.domain.values import FilePath
from appliance.runners.diffusers.pipeline import INDEX

#: Method -> the package that it needs, the bits of a weight, and the name of its class in torchao.
_METHODS: Final = {
    "bitsandbytes_4bit": ("bitsandbytes", 4, ""),
    "bitsandbytes_8bit": ("bitsandbytes", 8, ""),
    "torchao_int8": ("torchao", 8, "Int8WeightOnlyConfig"),
    "torchao_int4": ("torchao", 4, "Int4WeightOnlyConfig"),
    "torchao_float8": ("torchao", 8, "Float8WeightOnlyConfig"),
}


class Quantization(Section):
    """Quantization of components while they are loaded."""

    method: Literal[
        "bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8", "torchao_int4", "torchao_float8"
    ] = Field(description="Library and number format of the quantized weights.")
    components: tuple[str, ...] = Field(
        min_length=1,
        strict=False,
        description="Components of the pipeline to quantize, as in model_index.json: usually transformer or "
        "unet, and large text encoders.",
    )
    settings: dict[str, Any] = Field(
        default={},
        description="Further settings of the library's quantization config, such as "
        "{bnb_4bit_quant_type: nf4}.",
    )

    @property
    def bits(self) -> int:
        """Bits of one quantized weight."""
        return _METHODS[self.method][1]


GGUF: Final[Any] = Field(
    default={},
    exclude_if=lambda files: not files,  # the version of a model without it stays the same
    description="For each component of the pipeline, the GGUF file that replaces its weights, such as "
    "{transformer: model-Q4_K_S.gguf}. The weights stay quantized. A relative path is resolved against the "
    "folder of this file.",
)
GgufFiles = dict[str, FilePath]


def components(model: str, weights: Path, options: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return arguments of ``DiffusionPipeline.from_pretrained`` for quantized components.

    Raises:
        LoadFailed: a component does not exist, or a package is not installed.
    """
    index = json.loads((weights / INDEX).read_bytes())
    found: dict[str, Any] = {}
    if options.get("quantization"):
        found["quantization_config"] = _config(model, index, options["quantization"], dtype)
    for name, file in options.get("gguf", {}).items():
        found[name] = _gguf(model, weights, _entry(model, index, name, "gguf"), name, Path(file), dtype)
    return found


def shares(folder: Path, names: Iterable[str]) -> dict[str, float]:
    """Return the share of each component in the bytes of all weights in ``folder``, from 0 to 1.

    Raises:
        WeightsError: a component has no weights.
    """
    total = _bytes(folder)
    found = {}
    for name in names:
        size = _bytes(folder / name)
        if not size:
            raise WeightsError(
                f"the pipeline in {folder} has no component {name} with weights: correct it in the options "
                "quantization and gguf"
            )
        found[name] = size / total
    return found


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _entry(model: str, index: dict[str, Any], name: str, option: str) -> tuple[str, str]:
    """Return the library and the class of a component."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not all(entry):
        known = [key for key, value in index.items() if isinstance(value, list) and all(value)]
        raise LoadFailed(
            f"model {model}: options.{option}: the pipeline has no component {name}; its components are "
            f"{', '.join(known)}"
        )
    return entry[0], entry[1]


def _config(model: str, index: dict[str, Any], quantization: Mapping[str, Any], dtype: Any) -> Any:
    from diffusers import PipelineQuantizationConfig

    method = quantization["method"]
    package = _METHODS[method][0]
    mapping = {}
    for name in quantization["components"]:
        library, _ = _entry(model, index, name, "quantization.components")
        try:
            mapping[name] = _component_config(library, method, quantization["settings"], dtype)
        except ImportError as error:
            raise LoadFailed(
                f"model {model}: options.quantization.method {method} needs the package {package}, which is "
                "not installed: install it with `scripts/install --quantization` in a checkout, or with "
                '`pip install "appliance[quantization]"` in the environment of the appliance, or remove '
                f"quantization ({error})"
            ) from error
        except TypeError as error:
            raise LoadFailed(f"model {model}: options.quantization.settings: {error}; correct it") from error
    return PipelineQuantizationConfig(quant_mapping=mapping)


def _component_config(library: str, method: str, settings: Mapping[str, Any], dtype: Any) -> Any:
    """Return the quantization config of diffusers, or of transformers for text encoders."""
    import importlib

    package, bits, kind = _METHODS[method]
    importlib.import_module(package)
    home = importlib.import_module("diffusers" if library == "diffusers" else "transformers")
    if package == "torchao":
        torchao = importlib.import_module("torchao.quantization")
        return home.TorchAoConfig(getattr(torchao, kind)(**settings))
    if bits == 4:
        return home.BitsAndBytesConfig(load_in_4bit=True, **{"bnb_4bit_compute_dtype": dtype, **settings})
    return home.BitsAndBytesConfig(load_in_8bit=True, **settings)


def _gguf(model: str, weights: Path, entry: tuple[str, str], name: str, file: Path, dtype: Any) -> Any:
    import diffusers

    library, kind = entry
    found: Any = getattr(diffusers, kind, None) if library == "diffusers" else None
    if not hasattr(found, "from_single_file"):
        raise LoadFailed(
            f"model {model}: options.gguf.{name}: diffusers cannot read {kind} from a GGUF file; remove it"
        )
    if not file.is_file():
        raise LoadFailed(f"model {model}: options.gguf.{name}: {file} does not exist; correct it")
    return found.from_single_file(
        str(file),
        config=str(weights),
        subfolder=name,
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
        dtype=dtype,
        local_files_only=True,
    )
