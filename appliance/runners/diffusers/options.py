"""The options of models that are diffusers pipelines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.domain.values import GIB, KIB, FilePath
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import TORCH_RESIDUE, Options, in_dtype

_HOST = GIB // 2
#: What computing one picture takes for each of its pixels, mostly to decode it: 4 GiB for 1024 x 1024.
_PIXEL = 4 * KIB
_USUAL_PIXELS = 1024 * 1024  # where the weights are not here to say it


class DiffusersOptions(Options):
    """Options of a diffusers pipeline."""

    RESOURCES = frozenset({"max_outputs", "max_side", "offload", "vae_tiling"})
    OOM_HINT = "lower its options max_outputs or max_side, or set vae_tiling or, on a GPU, offload"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format to compute in. auto: bfloat16 on a GPU, float32 on a CPU, which has "
        "no other that every pipeline works in.",
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^\w+$",
        description='Which of several sets of weight files to take, such as fp16 for "*.fp16.safetensors".',
    )
    num_inference_steps: int | None = Field(
        default=None,
        ge=1,
        le=500,
        description="Steps of predictions that give none. Default: the pipeline's own.",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=50,
        description="Guidance of predictions that give none. Default: the pipeline's own.",
    )
    width: int | None = Field(
        default=None, ge=8, le=8192, description="Width of outputs in pixels. Default: what it was made for."
    )
    height: int | None = Field(
        default=None, ge=8, le=8192, description="Height of outputs in pixels. Default: what it was made for."
    )
    max_side: int = Field(
        default=2048, ge=8, le=8192, description="Largest width and height that may be asked for."
    )
    max_outputs: int = Field(
        default=4, ge=1, le=64, description="Most pictures of one prediction, which are computed together."
    )
    loras: dict[str, FilePath] = Field(
        default={},
        description="LoRA weights by the name that predictions give: a safetensors file, or its folder.",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        description="GPU only: keep parts of the pipeline in main memory until they compute. model: whole "
        "models, for a little time; sequential: layers, for a lot of it.",
    )
    vae_tiling: bool = Field(
        default=False,
        description="Decode in tiles, which takes less memory for large pictures and more time.",
    )

    def asleep(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``. What is offloaded is in main memory already, and comes and goes by itself."""
        if device == "cpu" or self.offload != "none":
            return None
        return TORCH_RESIDUE, self._loaded(weights, device)

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        return self._loaded(weights, device) + self._pixels() * _PIXEL + _HOST

    def _loaded(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        dtype = "bfloat16" if self.dtype == "auto" and device == "cuda" else self.dtype
        return in_dtype(weights, dtype, device)

    def _pixels(self) -> int:
        """Pixels that are decoded at a time."""
        return (self.width or 0) * (self.height or 0) or _USUAL_PIXELS


class DescribedDiffusersOptions(DiffusersOptions):
    """The same with what the weights say; never in the file."""

    RESOURCES = DiffusersOptions.RESOURCES | {"pipeline"}

    pipeline: dict[str, Any]  # a ``weights.pipeline.Pipeline``

    def _pixels(self) -> int:
        width, height = self.width or self.pipeline["width"], self.height or self.pipeline["height"]
        return int(width * height * self.max_outputs)
