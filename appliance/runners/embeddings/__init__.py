"""Kind `embeddings`: texts to vectors."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import EMBEDDINGS

KIND: Final = Kind(
    name="embeddings",
    model="appliance.runners.embeddings.options:EmbeddingsModel",
    runner="appliance.runners.embeddings.runner:EmbeddingsRunner",
    example_input="texts",
    operations=frozenset({EMBEDDINGS}),
    libraries=("transformers", "torch"),
    packages=("torch", "transformers", "safetensors", "sentencepiece", "tiktoken"),
    preload=(
        "torch",
        "transformers",
        "transformers.models.auto",
        "transformers.models.bert.modeling_bert",
        "appliance.runners.transformers_preload",
    ),
)
