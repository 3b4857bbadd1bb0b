"""Imported by the zygote on a machine without a GPU: registers vLLM's CPU kernels once for all workers.

Every engine core would register them again, and search all imported modules for each of them.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

_platform: Any = type(current_platform)
_platform.register_triton_kernel_overrides()
_platform.register_triton_kernel_overrides = classmethod(lambda _: None)
