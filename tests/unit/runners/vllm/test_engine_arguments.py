"""The option `engine`: arguments of vLLM's engine that have no key of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance import config as configuration
from appliance.domain.errors import ConfigError
from appliance.gateway.catalogue.catalogue import version_of
from appliance.runners.vllm import engine_arguments
from appliance.runners.vllm.options import VllmModel, VllmOptions

MODEL = {"name": "test/llm", "kind": "vllm", "source": {"path": "/weights"}}


@pytest.mark.parametrize(
    "engine",
    [
        {"max_num_batched_tokens": 4096, "enable_prefix_caching": False, "block_size": None},
        {"kv_cache_dtype": "fp8", "cpu_offload_gb": 2, "attention_backend": "FLASH_ATTN"},
        {
            "compilation_config": {"mode": 0},
            "speculative_config": {"method": "ngram"},
            "optimization_level": 2,
        },
        {"cudagraph_capture_sizes": [1, 2], "limit_mm_per_prompt": {"image": 1}},
    ],
)
def test_arguments_of_vllm_are_accepted(engine: dict[str, Any]) -> None:
    assert list(engine_arguments.problems(engine)) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_num_batched_token", 1, "no engine argument of this name; did you mean max_num_batched_tokens?"),
        ("max-num-batched-tokens", 1, "did you mean max_num_batched_tokens?"),
        ("zzz", 1, "no engine argument of this name: remove it"),
        (
            "max_num_batched_tokens",
            "many",
            "'many' should be a whole number or null. vLLM's help: Maximum number",
        ),
        ("enable_prefix_caching", 1, "1 should be true or false or null"),
        ("kv_cache_dtype", "fp9", "'fp9' should be one of auto, float16, "),
        ("attention_backend", "flash", "'flash' is none of the 46 choices, such as FLASHMLA, "),
        ("compilation_config", {"mod": 1}, "there is no key 'mod' in this argument; did you mean mode?"),
        ("gpu_memory_utilization", 0.5, "itself: use the key `memory` or `gpu` of the model"),
        ("tensor_parallel_size", 2, "itself: use the key `gpu` of the model"),
        ("max_model_len", 2, "itself: use the key `options.max_model_len` of the model"),
        ("enable_lora", True, "itself: use the keys `adapters`, `options.max_adapters`"),
        ("nnodes", 2, "itself: use the keys `machines` and `options.across_machines` of the model"),
        ("node_rank", 1, "the appliance sets how each engine uses its group of devices and machines: remove"),
    ],
)
def test_a_wrong_argument_is_refused(name: str, value: Any, said: str) -> None:
    ((found, message),) = engine_arguments.problems({name: value, "watermark": 0.1})
    assert found == name
    assert said in message


def test_the_config_names_file_line_model_and_argument(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        "models:\n  - name: test/llm\n    kind: vllm\n    source: {path: weights}\n    options:\n"
        "      engine:\n        stream_interval: 4\n        seed: 7\n"
    )
    with pytest.raises(ConfigError) as caught:
        configuration.load(file)
    assert (caught.value.line, caught.value.model, caught.value.key) == (8, "test/llm", "options.engine.seed")
    assert "use the input `seed` of a prediction" in str(caught.value)


def test_each_refused_argument_is_one_of_vllm() -> None:
    refused = dict.fromkeys(engine_arguments.REFUSED)
    assert all("no engine argument" not in message for _, message in engine_arguments.problems(refused))


def test_only_models_with_the_option_get_another_version() -> None:
    assert "engine" not in VllmOptions().model_dump()
    plain, other = (
        VllmModel.model_validate(MODEL | {"options": options})
        for options in ({}, {"engine": {"kv_cache_dtype": "fp8"}})
    )
    assert version_of(plain, "r") != version_of(other, "r")
    assert other.options.runner_options(adapted=False)["engine"] == {"kv_cache_dtype": "fp8"}
