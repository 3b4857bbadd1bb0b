from __future__ import annotations

from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.vllm import kv_cache
from appliance.runners.vllm.options import VllmOptions


def test_the_option_is_the_size_that_vllm_gets() -> None:
    options = VllmOptions(kv_cache=3 * GIB)
    assert kv_cache.engine_arguments(options.model_dump()) == {"kv_cache_memory_bytes": 3 * GIB}
    assert kv_cache.engine_arguments(VllmOptions().model_dump()) == {"kv_cache_memory_bytes": GIB // 2}


def test_the_size_is_a_part_of_the_models_memory() -> None:
    weights = WeightSize(stored=GIB, parameters=GIB // 2)
    smaller, larger = (VllmOptions(kv_cache=size).footprint(weights, "cuda") for size in (GIB, 4 * GIB))
    assert larger - smaller == 3 * GIB


def test_a_size_that_leaves_no_memory_for_the_weights_is_a_conflict() -> None:
    assert kv_cache.conflict(GIB, None) is None
    assert kv_cache.conflict(GIB, 2 * GIB) is None
    assert kv_cache.conflict(2 * GIB, 2 * GIB) == (
        "2.0 GiB leave no memory for the weights: set it below memory (2.0 GiB), which includes the KV cache"
    )
