"""vLLM's errors, rewritten for users of models.yaml. The texts are those of vLLM 0.32."""

from __future__ import annotations

import re

import pytest

from appliance.runners.vllm import errors
from appliance.runners.vllm.options import VllmModel, VllmOptions


@pytest.mark.parametrize(
    ("original", "translated"),
    [
        (
            (
                "User-specified max_model_len (9000) is greater than the derived max_model_len "
                "(max_position_embeddings=2048 or model_max_length=None in model's config.json). "
                "To allow overriding this maximum, set the env var "
                "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with"
                " extreme caution."
            ),
            (
                "User-specified options.max_model_len (9000) is greater than the model's own "
                "limit (max_position_embeddings=2048 or model_max_length=None in model's "
                "config.json); options.max_model_len is a key of the model in models.yaml"
            ),
        ),
        (
            (
                "No available memory for the cache blocks. Try increasing "
                "`gpu_memory_utilization` when initializing the engine (this flag also controls "
                "CPU memory reservation on the CPU backend, despite its name). See "
                "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more "
                "details."
            ),
            (
                "No available memory for the cache blocks. Try increasing memory; memory is a key"
                " of the model in models.yaml"
            ),
        ),
        (
            (
                "To serve at least one request with the model's max seq len (2048), (4.0 GiB KV "
                "cache is needed, which is larger than the available KV cache memory (1.0 GiB). "
                "Try increasing `gpu_memory_utilization` (which also controls CPU memory on the "
                "CPU backend) or decreasing `max_model_len` when initializing the engine. See "
                "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more "
                "details."
            ),
            (
                "To serve at least one request with the model's max seq len (2048), (4.0 GiB KV "
                "cache is needed, which is larger than the available KV cache memory (1.0 GiB). "
                "Try increasing memory or decreasing options.max_model_len; memory and "
                "options.max_model_len are keys of the model in models.yaml"
            ),
        ),
        (
            (
                "Available memory on node 0 (1.0/8.0 GiB) on kv cache allocation is less than "
                "requested memory for kv (4.0 GiB). Decrease --kv-cache-memory-bytes, "
                "VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
            ),
            (
                "Available memory on node 0 (1.0/8.0 GiB) on kv cache allocation is less than "
                "requested memory for kv (4.0 GiB). Decrease options.kv_cache, options.kv_cache, "
                "or reduce CPU memory used by other processes; options.kv_cache is a key of the "
                "model in models.yaml"
            ),
        ),
        (
            (
                "Free memory on device cuda:0 (10.0/79.0 GiB) on startup is less than desired GPU"
                " memory utilization (0.9, 71.1 GiB). Decrease GPU memory utilization or reduce "
                "GPU memory used by other processes."
            ),
            (
                "Free memory on device cuda:0 (10.0/79.0 GiB) on startup is less than desired GPU"
                " memory utilization (0.9, 71.1 GiB). Decrease memory or reduce GPU memory used "
                "by other processes; memory is a key of the model in models.yaml"
            ),
        ),
        (
            (
                "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. You "
                "can use float16 instead by explicitly setting the `dtype` flag in CLI, for "
                "example: --dtype=half."
            ),
            (
                "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. You "
                "can use float16 instead by explicitly setting options.dtype to float16; "
                "options.dtype is a key of the model in models.yaml"
            ),
        ),
        (
            ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
            (
                '"auto" tool choice requires options.tool_parser and options.tool_parser to be '
                "set; options.tool_parser is a key of the model in models.yaml"
            ),
        ),
        (
            (
                "thinking_token_budget is set but reasoning_config is not configured. Please set "
                "--reasoning-parser and/or --reasoning-config to use thinking_token_budget."
            ),
            (
                "thinking_token_budget is set but reasoning_config is not configured. Please set "
                "options.reasoning_parser and/or options.engine.reasoning_config to use "
                "thinking_token_budget; options.reasoning_parser and options.engine.reasoning_config are "
                "keys of the model in models.yaml"
            ),
        ),
        (
            (
                "The decoder prompt (length 3000) is longer than the maximum model length of "
                "2048. Make sure that `max_model_len` is no smaller than the number of text "
                "tokens."
            ),
            (
                "The decoder prompt (length 3000) is longer than the maximum model length of "
                "2048. Make sure that options.max_model_len is no smaller than the number of text"
                " tokens; options.max_model_len is a key of the model in models.yaml"
            ),
        ),
        (
            "LoRA rank 32 is greater than max_lora_rank 16.",
            (
                "LoRA rank 32 is greater than options.max_adapter_rank 16; "
                "options.max_adapter_rank is a key of the model in models.yaml"
            ),
        ),
        (
            (
                "Requested sample logprobs of 30, which is greater than max allowed: 20. Set "
                "max_logprobs (--max-logprobs) to at least 30."
            ),
            (
                "Requested sample logprobs of 30, which is greater than max allowed: 20. Set max_logprobs "
                "(options.engine.max_logprobs) to at least 30; options.engine.max_logprobs is a key of the "
                "model in models.yaml"
            ),
        ),
        (
            "You must set `--enable-mm-embeds` to input `image_embeds`",
            (
                "You must set options.engine.enable_mm_embeds to input `image_embeds`; "
                "options.engine.enable_mm_embeds is a key of the model in models.yaml"
            ),
        ),
        (
            "You must set `--nnodes` to 2",
            "You must set machines to 2; machines is a key of the model in models.yaml",
        ),
        (
            "The model does not support chat_template with dtype float16.",
            None,
        ),
        (
            "max_tokens must be at least 1, got 0.",
            None,
        ),
        (
            "The prompt is too long -- 3000 tokens. Shorten it.",
            None,
        ),
        (
            "the model a/b does not support tools, because its options in models.yaml have no tool_parser",
            None,
        ),
    ],
)
def test_names_of_vllm_become_keys_of_models_yaml(original: str, translated: str | None) -> None:
    assert errors.translate(original) == (translated or original)


def test_every_key_that_is_named_exists() -> None:
    for key in errors._KEYS.values():
        section, _, option = key.rpartition(".")
        known = VllmOptions.model_fields if section else VllmModel.model_fields
        assert option in known, key
        assert not re.search(r"[A-Z-]", key)
