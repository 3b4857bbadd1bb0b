"""Rewrites vLLM's errors for users, who set keys of models.yaml instead of vLLM's flags and variables.

Written for the messages of vLLM 0.32. Does not import vLLM.
"""

from __future__ import annotations

import re
from typing import Final

from appliance.runners.vllm import engine_arguments

#: vLLM's name of a setting, with underscores for hyphens -> the key of the model in models.yaml.
_KEYS: Final = {
    "gpu_memory_utilization": "memory",
    "kv_cache_memory_bytes": "options.kv_cache",
    "VLLM_CPU_KVCACHE_SPACE": "options.kv_cache",
    "tensor_parallel_size": "gpu",
    "pipeline_parallel_size": "machines",
    "nnodes": "machines",
    "max_model_len": "options.max_model_len",
    "max_num_seqs": "options.max_num_seqs",
    "dtype": "options.dtype",
    "enforce_eager": "options.enforce_eager",
    "trust_remote_code": "options.trust_remote_code",
    "chat_template": "options.chat_template",
    "reasoning_parser": "options.reasoning_parser",
    "reasoning_parser_name": "options.reasoning_parser",
    "tool_parser": "options.tool_parser",
    "tool_call_parser": "options.tool_parser",
    "enable_auto_tool_choice": "options.tool_parser",
    "enable_lora": "options.max_adapters",
    "max_loras": "options.max_adapters",
    "max_lora_rank": "options.max_adapter_rank",
}

#: Names that are also fields of requests: they are replaced only if the message writes them as a flag.
_ALSO_IN_REQUESTS: Final = frozenset({"dtype", "chat_template"})

#: Replacements that are made before names are replaced by keys.
_PHRASES: Final = (
    (re.compile(r"the `?dtype`? flag in CLI, for example: --dtype=half"), "--dtype to float16"),
    (re.compile(r"(?:the )?derived_?\s?max_model_len"), "the model's own limit"),
    (re.compile(r"(?<!desired )GPU memory utilization"), "--gpu-memory-utilization"),
    (re.compile(r" \([^()]*(?:CPU backend|this flag)[^()]*\)"), ""),  # explains vLLM's flag on a CPU
    (re.compile(r" \(e\.g\. `?--[^()]*\)"), ""),
    (re.compile(r" when initializing the engine"), ""),
    (re.compile(r"\s*For further information visit https://errors\.pydantic\.dev/\S+"), ""),
)

_NAME: Final = re.compile(
    r"(?P<quote>`?)(?P<flag>--)?(?P<name>\b(?:[a-z]+(?:[-_][a-z]+)*|VLLM_[A-Z0-9_]+))(?P=quote)(?![\w-]|\.\w)"
)
_FOREIGN: Final = re.compile(r"(?<![\w-])--[a-z][\w-]+|\bVLLM_[A-Z0-9_]+|https://docs\.vllm\.ai\S*")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")


def translate(text: str) -> str:
    """Replace vLLM's names by keys of models.yaml, and remove sentences about other flags of vLLM."""
    if "models.yaml" in text:  # an error of the appliance, which names the keys already
        return text
    for pattern, words in _PHRASES:
        text = pattern.sub(words, text)
    kept: list[str] = []
    named: dict[str, None] = {}
    for sentence in _SENTENCE.split(text):
        replaced, keys = _with_keys(sentence)
        if not _FOREIGN.search(replaced):
            kept.append(replaced)
            named.update(keys)
    if not kept:
        return f"{text.rstrip('.')}; models.yaml has no key for that setting of vLLM"
    if not named:
        return " ".join(kept)
    are = "is a key" if len(named) == 1 else "are keys"
    return f"{' '.join(kept).rstrip('.')}; {' and '.join(named)} {are} of the model in models.yaml"


def _with_keys(sentence: str) -> tuple[str, dict[str, None]]:
    """Return the sentence with keys instead of vLLM's names, and these keys in order."""
    keys: dict[str, None] = {}

    def key(found: re.Match[str]) -> str:
        name = found["name"] if found["name"].isupper() else found["name"].replace("-", "_")
        known = _KEYS.get(name)
        if known is None and found["flag"] and engine_arguments.accepts(name):
            known = f"options.engine.{name}"
        if known is None or (name in _ALSO_IN_REQUESTS and not found["flag"]):
            return found[0]
        keys[known] = None
        return known

    return _NAME.sub(key, sentence), keys
