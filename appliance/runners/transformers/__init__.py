"""Kind `transformers`: models for one task."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import RERANK

KIND: Final = Kind(
    name="transformers",
    model="appliance.runners.transformers.options:TransformersModel",
    runner="appliance.runners.transformers.runner:TransformersRunner",
    operations=frozenset({RERANK}),
    libraries=("transformers", "torch"),
    packages=("torch", "transformers", "accelerate", "safetensors", "sentencepiece", "tiktoken"),
    preload=(
        "torch",
        "transformers",
        "transformers.models.auto",
        "transformers.pipelines",
        "appliance.runners.transformers_preload",
    ),
)
