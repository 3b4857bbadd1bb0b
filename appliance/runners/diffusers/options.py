"""Options of diffusers pipelines in models.yaml."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from appliance.domain.errors import WeightsError
from appliance.domain.section import subsection
from appliance.domain.values import GIB, KIB, FilePath
from appliance.domain.weight_size import WeightSize
from appliance.runners.adapters import AdaptableModel
from appliance.runners.diffusers import controlnets, quantization
from appliance.runners.diffusers import pipeline as pipelines
from appliance.runners.diffusers.controlnets import ComponentSource, IpAdapter
from appliance.runners.diffusers.quantization import GGUF, GgufFiles, Quantization
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import TORCH_RESIDUE, Options, in_dtype

#: Name of a ControlNet in models.yaml, which is a part of the names of its inputs.
ControlNetName = Annotated[str, Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=40)]
_PROCESS = GIB // 2  # bytes on the device besides weights and images
_PIXEL = 4 * KIB  # bytes of working memory for each pixel of an image, mostly to decode it
_AUDIO = 3 * GIB  # bytes of working memory to decode a minute of stereo audio
_USUAL_PIXELS = 1024 * 1024  # assumed until the weights are downloaded


class DiffusersOptions(Options):
    """Options of a diffusers pipeline."""

    UNVERSIONED = frozenset({"max_batch", "max_outputs", "max_side", "offload", "vae_tiling"})
    OOM_HINT = "lower its options max_outputs, max_batch or max_side, or set vae_tiling or, on a GPU, offload"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format to compute in. auto: bfloat16 on a GPU, float32 on a CPU, because not "
        "every pipeline runs in another format there.",
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^\w+$",
        description='Variant of the weight files to load, such as fp16 for "*.fp16.safetensors".',
    )
    num_inference_steps: int | None = Field(
        default=None,
        ge=1,
        le=500,
        description="Denoising steps if a prediction sets none. Default: the pipeline's own.",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=50,
        description="Guidance scale if a prediction sets none. Default: the pipeline's own.",
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        description="Width of outputs if a prediction sets none, in pixels. Default: the pipeline's own.",
    )
    height: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        description="Height of outputs if a prediction sets none, in pixels. Default: the pipeline's own.",
    )
    max_side: int = Field(
        default=2048,
        ge=8,
        le=8192,
        description="Largest width and height that a prediction may request, in pixels.",
    )
    max_outputs: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Maximum number of images of one prediction; they are computed together.",
    )
    max_batch: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # memory measured without it stays valid
        ge=1,
        le=64,
        description="Maximum number of images in a batch of several predictions that wait, for Stable "
        "Diffusion, SDXL, Stable Diffusion 3 and FLUX. 1: each prediction is computed alone. Default: "
        "max_outputs.",
    )
    loras: dict[str, FilePath] = Field(
        default={},
        description="Short form of `adapters` for files of this machine, which are no models of their own: "
        "a safetensors file or a folder with one, by the name that predictions use.",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        description="GPU only: keep parts of the pipeline in main memory until they compute. model: moves "
        "whole models, a little slower; sequential: moves single layers, much slower.",
    )
    quantization: Quantization | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # the version of a model without it stays the same
        description="Quantize components while they are loaded: needs less device memory. Default: no.",
    )
    gguf: GgufFiles = GGUF
    controlnets: dict[ControlNetName, ComponentSource] = Field(
        default={},
        exclude_if=operator.not_,
        description="ControlNets that are loaded with the pipeline, as name: source. The name canny adds "
        "the inputs controlnet_canny_image, controlnet_canny_conditioning_scale, controlnet_canny_start and "
        "controlnet_canny_end.",
    )
    ip_adapter: IpAdapter | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="IP-Adapter that is loaded with the pipeline; it adds the inputs ip_adapter_image and "
        "ip_adapter_scale. Default: none.",
    )
    vae_tiling: bool = Field(
        default=False, description="Decode large images in tiles: needs less memory and more time."
    )

    def completed(self, folder: Path) -> DescribedDiffusersOptions:
        described = msgspec.to_builtins(pipelines.read(folder))
        for name, file in self.gguf.items():
            if not file.is_file():
                raise WeightsError(
                    f"options.gguf.{name}: {file} does not exist: correct it, or remove the key"
                )
        names = [*(self.quantization.components if self.quantization is not None else ()), *self.gguf]
        shares = quantization.shares(folder, names)
        return DescribedDiffusersOptions.model_validate(
            self.model_dump() | {"pipeline": described, "shares": shares}
        )

    def sleep_footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        # With `offload` the weights are in main memory already.
        if device == "cpu" or self.offload != "none":
            return None
        return TORCH_RESIDUE, self._loaded(weights, device)

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return self._loaded(weights, device) + self._working_memory() + _PROCESS

    def _loaded(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        dtype = "bfloat16" if self.dtype == "auto" and device == "cuda" else self.dtype
        return self._quantized(in_dtype(weights, dtype, device), 32 if dtype in {"auto", "float32"} else 16)

    def _quantized(self, loaded: int, bits: int) -> int:
        """Return the bytes of ``loaded`` weights of ``bits`` bits after the quantization of components."""
        return loaded  # the sizes of components are unknown until the weights are downloaded

    def _working_memory(self) -> int:
        """Return the bytes that are needed to decode the outputs."""
        return self._pixels() * _PIXEL

    def _pixels(self) -> int:
        """Return the number of pixels of all images that are decoded together."""
        return (self.width or 0) * (self.height or 0) or _USUAL_PIXELS


class DescribedDiffusersOptions(DiffusersOptions):
    """``DiffusersOptions`` plus the description of the pipeline, which users cannot set."""

    UNVERSIONED = DiffusersOptions.UNVERSIONED | {
        *("pipeline", "shares", "controlnet_pipelines", "extra_weight_paths", "extra_weight_size"),
    }

    pipeline: dict[str, Any]  # fields of ``runners.diffusers.pipeline.Pipeline``
    #: Share of the bytes of all weights, by the name of each component that is quantized.
    shares: dict[str, float] = Field(default={}, exclude_if=operator.not_)
    #: Fields of ``runners.diffusers.pipeline.ControlNetPipelines``; empty without ControlNets.
    controlnet_pipelines: dict[str, Any] = Field(default={}, exclude_if=operator.not_)
    #: Folder or file of each ControlNet, IP-Adapter and image encoder, by its key in models.yaml.
    extra_weight_paths: dict[str, str] = Field(default={}, exclude_if=operator.not_)
    #: Total size of the files in ``extra_weight_paths``: the fields of ``WeightSize``.
    extra_weight_size: tuple[int, int | None, bool] | None = Field(
        default=None, strict=False, exclude_if=lambda value: value is None
    )

    def paths(self) -> list[Path]:
        return [*super().paths(), *map(Path, self.extra_weight_paths.values())]

    @property
    def predictions_at_once(self) -> int:
        batched = self.pipeline["call"]["name"] in pipelines.BATCHED and self.ip_adapter is None
        return (self.max_batch or self.max_outputs) if batched else 1

    def with_extra_weights(self, paths: Mapping[str, Path], size: WeightSize) -> DescribedDiffusersOptions:
        name = self.pipeline["call"]["name"]
        for key, path in paths.items():
            if not path.exists():
                raise WeightsError(
                    f"{key}: {path} does not exist: correct the source, or run `appliance pull`"
                )
        if self.ip_adapter is not None and name not in controlnets.WITH_IP_ADAPTER:
            known = " and ".join(sorted(controlnets.WITH_IP_ADAPTER))
            raise WeightsError(f"options.ip_adapter is supported with {known}, not with {name}: remove it")
        found = pipelines.controlnet_pipelines(name)
        for key in (f"{controlnets.CONTROLNETS}.{each}" for each in self.controlnets):
            controlnet_class = controlnets.controlnet_class(key, paths[key])
            if found is None:
                raise WeightsError(
                    f"options.controlnets: {name} is not supported, only Stable Diffusion, SDXL and FLUX.1 "
                    "are: remove the option"
                )
            if controlnet_class != found.controlnet:
                raise WeightsError(
                    f"{key} has a {controlnet_class}, but {name} needs a {found.controlnet}: correct the "
                    "source"
                )
        located = dict(paths)
        if controlnets.IP_ADAPTER in located:
            located[controlnets.IP_ADAPTER] = controlnets.weights_file(
                controlnets.IP_ADAPTER, located[controlnets.IP_ADAPTER]
            )
        described = {
            "controlnet_pipelines": msgspec.to_builtins(found) if self.controlnets else {},
            "extra_weight_paths": {key: str(path) for key, path in located.items()},
            "extra_weight_size": tuple(size),
        }
        return self.model_copy(update=described)

    def _loaded(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        loaded = super()._loaded(weights, device)
        if self.extra_weight_size is None:
            return loaded
        dtype = "bfloat16" if self.dtype == "auto" and device == "cuda" else self.dtype
        return loaded + in_dtype(WeightSize(*self.extra_weight_size), dtype, device)

    def _quantized(self, loaded: int, bits: int) -> int:
        quantized = loaded
        if self.quantization is not None:
            share = sum(self.shares[name] for name in self.quantization.components)
            quantized -= int(loaded * share * (1 - self.quantization.bits / bits))
        for name, file in self.gguf.items():
            quantized += file.stat().st_size - int(loaded * self.shares[name])
        return quantized

    def _working_memory(self) -> int:
        return _AUDIO if self.pipeline["makes"] == "audio" else super()._working_memory()

    def _pixels(self) -> int:
        width, height = self.width or self.pipeline["width"], self.height or self.pipeline["height"]
        return int(width * height * max(self.max_outputs, self.max_batch or 1))


class DiffusersModel(AdaptableModel):
    """A pipeline that generates images, videos or audio, run with diffusers."""

    SCALES = True
    ADAPTERS_ADD_MEMORY = True

    kind: Literal["diffusers"] = Field(
        description="A pipeline for images, videos or audio, run with diffusers."
    )
    source: WeightsSource = Field(description="Source of the weights.")
    options: DiffusersOptions = subsection(DiffusersOptions(), "Options of this kind.")

    @property
    def weight_variant(self) -> str | None:
        return self.options.variant

    @property
    def extra_weights(self) -> Mapping[str, ModelConfig]:
        options = self.options
        sources = {
            f"{controlnets.CONTROLNETS}.{name}": source for name, source in options.controlnets.items()
        }
        if options.ip_adapter is not None:
            sources[controlnets.IP_ADAPTER] = options.ip_adapter.weights
            sources[controlnets.IMAGE_ENCODER] = options.ip_adapter.image_encoder
        return {
            key: ModelConfig.model_construct(name=f"{self.name}, {key}", kind="component", source=source)
            for key, source in sources.items()
        }

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        if self.options.offload != "none" and (self.options.controlnets or self.options.ip_adapter):
            message = (
                "cannot be combined with controlnets and ip_adapter: set offload to none, or remove them"
            )
            yield "options.offload", message
        quantized = self.options.quantization
        for name in self.options.gguf:
            if quantized is not None and name in quantized.components:
                yield "options.gguf", f"{name} is quantized in its GGUF file: remove it from quantization"

    @property
    def local_adapters(self) -> Mapping[str, Path]:
        return self.options.loras

    def adapter_problem(self, folder: Path) -> str | None:
        if reason := super().adapter_problem(folder):
            return reason
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            return f"{folder} has no safetensors file: correct the source"
        return None
