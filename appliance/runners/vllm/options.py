"""Options of language models served by vLLM in models.yaml."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from appliance.domain.section import size
from appliance.domain.values import GIB, Bytes
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import Options, in_dtype
from appliance.runners.vllm.parsers import ReasoningParser, ToolParser

_VLLM_HOST: Final = GIB
_VLLM_RESIDUE: Final = 2 * GIB


class VllmOptions(Options):
    """Options of a language model served by vLLM."""

    # Parsers sort what a model has written; they do not change it.
    RESOURCES = frozenset(
        {
            "max_num_seqs", "kv_cache", "enforce_eager", "max_adapters", "max_adapter_rank", "tool_parser",
            "reasoning_parser",
        }
    )  # fmt: skip
    OOM_HINT = "lower its options kv_cache, max_num_seqs or max_model_len"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format to compute in. auto: the one of the weights on a GPU; on a CPU bfloat16 "
        "where the processor multiplies it, else float32. In float32 an answer hardly depends on what else "
        "is computed at the same time.",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=16,
        description="Longest prompt and output together, in tokens. Default: what the model was made for.",
    )
    max_num_seqs: int = Field(
        default=32, ge=1, le=4096, description="Predictions computed together; further ones wait."
    )
    kv_cache: Bytes = size(
        "512MiB",
        "Memory for the attention cache, which limits how many tokens are in flight. Part of `memory`.",
    )
    enforce_eager: bool | None = Field(
        default=None,
        description="Skip compilation and CUDA graphs: starts sooner, runs slower on a GPU. "
        "Default: true on a CPU, false on a GPU.",
    )
    max_adapters: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Trained versions whose predictions are computed together; further ones take turns. "
        "Costs nothing before the first one is trained. 0: the model cannot be trained.",
    )
    max_adapter_rank: Literal[8, 16, 32, 64, 128] = Field(
        default=16, description="Largest rank of a trained version. A larger one takes memory and time."
    )
    system_prompt: str = Field(
        default="You are a helpful assistant.", description="System prompt of predictions that give none."
    )
    max_tokens: int = Field(
        default=512, ge=1, description="Longest output of predictions that give no max_tokens."
    )
    temperature: float = Field(
        default=0.6, ge=0, le=5, description="Temperature of predictions that give none; 0 is greedy."
    )
    top_p: float = Field(default=0.9, gt=0, le=1, description="top_p of predictions that give none.")
    top_k: int = Field(default=50, ge=0, description="top_k of predictions that give none; 0 is off.")
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Presence penalty of predictions that give none."
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Frequency penalty of predictions that give none."
    )
    chat_template: str | None = Field(
        default=None, description="Jinja chat template, as text. Default: the tokenizer's own."
    )
    tool_parser: ToolParser | None = Field(
        default=None,
        description="How the model writes tool calls, by vLLM's name for it. Default: it takes no tools.",
    )
    reasoning_parser: ReasoningParser | None = Field(
        default=None,
        description="How the model writes what it thinks before it answers, by vLLM's name for it. "
        "Default: all that it writes is the answer.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the weights. Only for sources you trust."
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return self.max_num_seqs

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        loaded = in_dtype(weights, self.dtype, device)
        # An adapter of rank 16 is about a fiftieth of its model.
        adapters = int(loaded * self.max_adapters * self.max_adapter_rank / 800)
        return loaded + adapters + self.kv_cache + _VLLM_HOST

    def asleep(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``. vLLM's backend for CPUs says that it sleeps, and gives nothing back."""
        kept = self.footprint(weights, device) - self.kv_cache - _VLLM_HOST
        return (_VLLM_RESIDUE, kept) if device == "cuda" else None

    @property
    def trainable(self) -> bool:
        """See ``Options``."""
        return self.max_adapters > 0

    def loaded(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """See ``Options``. An engine that is ready for adapters computes a sixth slower on a CPU."""
        told = super().loaded(adapted=adapted, weights=weights)
        return told if adapted else {**told, "max_adapters": 0}

    def training_footprint(self, weights: WeightSize) -> int:
        """See ``Options``. Weights in float32, and as much again for what is computed with them."""
        return 2 * weights.in_32_bits + _VLLM_HOST
