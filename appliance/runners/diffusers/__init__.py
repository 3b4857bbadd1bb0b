"""Kind `diffusers`: image and video models."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import IMAGES

KIND: Final = Kind(
    name="diffusers",
    model="appliance.runners.diffusers.options:DiffusersModel",
    runner="appliance.runners.diffusers.runner:DiffusersRunner",
    example_input="prompt",
    operations=frozenset({IMAGES}),
    libraries=("diffusers", "torch", "transformers"),
    packages=(
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "safetensors",
        "gguf",
        "ftfy",
        "sentencepiece",
    ),
    preload=(
        "torch",
        "PIL.Image",
        "PIL.WebPImagePlugin",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "diffusers.pipelines.auto_pipeline",
        "diffusers.guiders",
        "appliance.runners.transformers_preload",
        "appliance.runners.diffusers.runner",
    ),
)
