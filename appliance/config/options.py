"""The options of each model kind: what its runner can be told."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from appliance.config.parsers import ReasoningParser, ToolParser
from appliance.config.section import Section, size
from appliance.config.values import GIB, MIB, Bytes, Seconds
from appliance.config.weight import Weight

#: What an engine host takes besides weights and KV cache: the process with its libraries, and working memory.
_ECHO_HOST: Final = 64 * MIB
_VLLM_HOST: Final = GIB
#: What a sleeper keeps of each device at most: the CUDA context, libraries' workspaces, graphs. A sleep that
#: leaves more ends the host.
_ECHO_RESIDUE: Final = MIB
_VLLM_RESIDUE: Final = 2 * GIB
TORCH_RESIDUE: Final = GIB
_COG_HOST: Final = GIB
_EMBEDDINGS_HOST: Final = GIB // 2
_EMBEDDED_AT_ONCE: Final = 64  # predictions; they wait for each other's batches


class Options(Section):
    """What the appliance itself needs to know of any kind's options."""

    #: Whether it computes on the CPU although there are GPUs.
    ON_CPU: ClassVar[bool] = False
    #: Options that decide about speed and memory only: changing one keeps the model's version.
    RESOURCES: ClassVar[frozenset[str]] = frozenset()
    #: What to do when a host of this kind ran out of memory, as part of a sentence.
    EASED_BY: ClassVar[str] = "ask for less at a time"

    @property
    def predictions_at_once(self) -> int:
        """How many predictions one engine host may run at a time."""
        return 1

    @property
    def trainable(self) -> bool:
        """Whether new versions of the model can be trained."""
        return False

    def loaded(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """What a runner is told.

        ``adapted`` says whether trained versions run on what is loaded, ``weights`` is the file of the one
        trained version that is loaded.
        """
        return self.model_dump(mode="json")

    def training_footprint(self, weights: Weight) -> int:
        """Bytes to reserve on a device for training; ``weights`` are those that it begins with."""
        raise NotImplementedError

    def footprint(self, weights: Weight, device: Literal["cpu", "cuda"]) -> int:
        """Bytes to reserve on a ``device`` of that kind, where neither `gpu` nor `memory` says it.

        ``weights`` is what is known of the model's own.
        """
        raise NotImplementedError

    def asleep(self, weights: Weight, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """Bytes that it keeps of each device asleep, and bytes of main memory if its weights go there.

        None if it cannot sleep there.
        """
        return None


def in_dtype(weights: Weight, dtype: str, device: Literal["cpu", "cuda"]) -> int:
    """Bytes of the weights once they are loaded; ``auto`` is float32 on a CPU, and as stored on a GPU."""
    if dtype == "float32" or (dtype == "auto" and device == "cpu"):
        return weights.in_32_bits
    return weights.stored if dtype == "auto" else weights.in_16_bits


class EchoOptions(Options):
    """Options of an echo model, which says back what it is told."""

    ON_CPU = True
    RESOURCES = frozenset({"concurrency", "startup_delay", "weights", "residue", "sleep_delay"})
    EASED_BY = "lower its option concurrency"

    concurrency: int = Field(default=64, ge=1, le=10_000, description="Predictions that run at a time.")
    startup_delay: Seconds = Field(
        default=0.0, description="How long loading takes: seconds, or text such as 2s."
    )
    stream: bool = Field(
        default=False, description="Whether the output is a stream of words instead of one text."
    )
    files: bool = Field(default=False, description="Whether the output is files instead of text.")
    weights: Bytes | None = Field(
        default=None, description="Memory to hold as if it was weights, which is given back asleep."
    )
    residue: Bytes | None = Field(default=None, description="What of that is kept asleep all the same.")
    sleep_delay: Seconds = Field(
        default=0.0,
        description="How long falling asleep and waking take: seconds, or text such as 2s.",
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return self.concurrency

    def footprint(self, weights: Weight, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        return weights.stored + (self.weights or 0) + _ECHO_HOST

    def asleep(self, weights: Weight, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``; what it gives back it holds on any device."""
        return None if self.weights is None else (_ECHO_RESIDUE, self.weights)


class EmbeddingsOptions(Options):
    """Options of an embedding model."""

    RESOURCES = frozenset({"max_batch"})
    EASED_BY = "lower its option max_batch"

    max_batch: int = Field(
        default=64, ge=1, le=4096, description="Texts computed together, of one prediction or of many."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the weights. Only for sources you trust."
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return _EMBEDDED_AT_ONCE

    def asleep(self, weights: Weight, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``."""
        kept = self.footprint(weights, device) - _EMBEDDINGS_HOST
        return (TORCH_RESIDUE, kept) if device == "cuda" else None

    def footprint(self, weights: Weight, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``. Computed in 32 bits on a CPU, in 16 on a GPU; taken to be stored in 32."""
        in_32_bits = weights.stored if weights.numbers is None else weights.in_32_bits
        return (in_32_bits if device == "cpu" else in_32_bits // 2) + _EMBEDDINGS_HOST


class CogOptions(Options):
    """Options of a Cog project."""

    RESOURCES = frozenset({"concurrency"})
    EASED_BY = "lower its option concurrency"

    concurrency: int | None = Field(
        default=None, ge=1, le=1000, description="Predictions at a time. Default: what the project says."
    )
    environment: dict[str, str] = Field(
        default={}, description="Further environment variables of the project's process."
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return self.concurrency or 1

    def footprint(self, weights: Weight, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``. What a project holds is its own business: `memory` should say it."""
        return weights.stored + _COG_HOST


class BuiltCogOptions(CogOptions):
    """The same with what was found out when the project was built; never in the file."""

    RESOURCES = frozenset({"concurrency", "build", "trains"})

    build: str  # absolute path
    trains: bool  # whether it has a train()

    @property
    def trainable(self) -> bool:
        """See ``Options``."""
        return self.trains

    def training_footprint(self, weights: Weight) -> int:
        """See ``Options``; nobody knows."""
        return self.footprint(weights, "cpu")  # the same on every device

    def loaded(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """See ``Options``. A project gets trained weights by a variable of its environment."""
        told = super().loaded(adapted=adapted, weights=weights)
        if weights is not None:
            told["environment"] = {**told["environment"], "COG_WEIGHTS": weights}
        return told


class VllmOptions(Options):
    """Options of a language model served by vLLM."""

    # Parsers sort what a model has written; they do not change it.
    RESOURCES = frozenset(
        {
            "max_num_seqs", "kv_cache", "enforce_eager", "max_adapters", "max_adapter_rank", "tool_parser",
            "reasoning_parser",
        }
    )  # fmt: skip
    EASED_BY = "lower its options kv_cache, max_num_seqs or max_model_len"

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

    def footprint(self, weights: Weight, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        loaded = in_dtype(weights, self.dtype, device)
        # An adapter of rank 16 is about a fiftieth of its model.
        adapters = int(loaded * self.max_adapters * self.max_adapter_rank / 800)
        return loaded + adapters + self.kv_cache + _VLLM_HOST

    def asleep(self, weights: Weight, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
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

    def training_footprint(self, weights: Weight) -> int:
        """See ``Options``. Weights in float32, and as much again for what is computed with them."""
        return 2 * weights.in_32_bits + _VLLM_HOST
