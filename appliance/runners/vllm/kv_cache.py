"""The size of vLLM's KV cache, which is the option ``kv_cache`` in models.yaml.

The KV cache holds the attention keys and values of all tokens of running predictions. vLLM gets its size in
bytes instead of computing one from free memory, so that models can share a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from appliance.domain.section import size
from appliance.domain.units import readable_bytes

#: The option ``kv_cache``.
KV_CACHE: Final[Any] = size(
    "512MiB",
    "Memory for the attention (KV) cache; limits the tokens of running predictions. Part of `memory`.",
)


def engine_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of vLLM's engine that set the size."""
    return {"kv_cache_memory_bytes": options["kv_cache"]}


def conflict(kv_cache: int, memory: int | None) -> str | None:
    """Return the error message if ``memory``, the bytes of the whole model, leaves none for its weights."""
    if memory is None or kv_cache < memory:
        return None
    return (
        f"{readable_bytes(kv_cache)} leave no memory for the weights: set it below memory "
        f"({readable_bytes(memory)}), which includes the KV cache"
    )
