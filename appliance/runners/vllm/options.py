"""Options of language models served by vLLM in models.yaml."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from appliance.domain.section import subsection
from appliance.domain.values import GIB, Bytes
from appliance.domain.weight_size import WeightSize
from appliance.runners.adapters import AdaptableModel
from appliance.runners.model_config import WeightsSource
from appliance.runners.options import TRUST_REMOTE_CODE, Options, in_dtype
from appliance.runners.vllm import adapters, engine_arguments, kv_cache
from appliance.runners.vllm.kv_cache import KV_CACHE
from appliance.runners.vllm.parsers import ONLINE_BITS, Quantization, ReasoningParser, ToolParser

_PROCESS: Final = GIB  # bytes on the device besides weights, adapters and KV cache
_RESIDUE: Final = 2 * GIB  # bytes of the device that a sleeping model keeps


class VllmOptions(Options):
    """Options of a language model served by vLLM."""

    # Parsers split the generated text into fields; they do not change the text.
    UNVERSIONED = frozenset(
        {
            "max_num_seqs", "kv_cache", "enforce_eager", "max_adapters", "max_adapter_rank", "tool_parser",
            "reasoning_parser", "across_machines",
        }
    )  # fmt: skip
    OOM_HINT = "lower its options kv_cache, max_num_seqs or max_model_len"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format to compute in. auto: the format of the weights on a GPU; on a "
        "CPU bfloat16 if the processor supports it, else float32. With float32, outputs hardly depend on "
        "the other predictions of the same batch.",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=16,
        description="Maximum length of prompt and output together, in tokens. Default: the "
        "model's own limit.",
    )
    max_num_seqs: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Maximum number of predictions computed in one batch; others wait.",
    )
    kv_cache: Bytes = KV_CACHE
    enforce_eager: bool | None = Field(
        default=None,
        description="Skip compilation and CUDA graphs: loads faster, runs slower on a GPU. "
        "Default: true on a CPU, false on a GPU.",
    )
    across_machines: Literal["pipeline", "tensor"] = Field(
        default="pipeline",
        description="How a model with `machines` over 1 is divided among them. pipeline: each machine "
        "computes some of the layers. tensor: each computes a share of every layer, which needs a fast "
        "network. Inside a machine, each device of `gpu` computes a share of every layer.",
    )
    max_adapters: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Maximum number of LoRA adapters in one batch; others take turns. Costs nothing until "
        "the model has an adapter or a trained version. 0: no adapters, and the model cannot be trained.",
    )
    max_adapter_rank: Literal[8, 16, 32, 64, 128] = Field(
        default=16,
        description="Largest rank of a LoRA adapter. A larger rank needs more memory and time.",
    )
    system_prompt: str = Field(
        default="You are a helpful assistant.", description="Default system prompt of a prediction."
    )
    max_tokens: int = Field(
        default=512, ge=1, description="Default max_tokens of a prediction: the longest output in tokens."
    )
    temperature: float = Field(
        default=0.6, ge=0, le=5, description="Default temperature of a prediction; 0 is greedy decoding."
    )
    top_p: float = Field(default=0.9, gt=0, le=1, description="Default top_p of a prediction.")
    top_k: int = Field(default=50, ge=0, description="Default top_k of a prediction; 0 turns it off.")
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Default presence penalty of a prediction."
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Default frequency penalty of a prediction."
    )
    chat_template: str | None = Field(
        default=None, description="Jinja chat template, as text. Default: the tokenizer's template."
    )
    tool_parser: ToolParser | None = Field(
        default=None,
        description="vLLM's tool call parser for this model, such as hermes. Default: tools are refused.",
    )
    reasoning_parser: ReasoningParser | None = Field(
        default=None,
        description="vLLM's reasoning parser for this model, such as qwen3. "
        "Default: everything that the model writes is its answer.",
    )
    quantization: Quantization | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # the version of a model without it stays the same
        description="vLLM's quantization method. Default: that in the config of the weights, such as AWQ, "
        "GPTQ or FP8. For weights that are not quantized: a method that quantizes them while they are "
        "loaded, such as fp8.",
    )
    trust_remote_code: bool = TRUST_REMOTE_CODE
    engine: dict[str, Any] = Field(
        default={},
        exclude_if=operator.not_,  # the version of a model without it stays the same
        description="Further arguments of vLLM's engine, with their names in vLLM, such as "
        "max_num_batched_tokens. They are checked against the arguments of the vLLM that is installed.",
    )

    def completed(self, folder: Path) -> VllmOptions:
        return ImageVllmOptions.model_validate(self.model_dump()) if _accepts_images(folder) else self

    @property
    def predictions_at_once(self) -> int:
        return self.max_num_seqs

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        loaded = in_dtype(weights, self.dtype, device)
        if self.quantization in ONLINE_BITS and not weights.quantized:
            loaded = weights.in_16_bits * ONLINE_BITS[self.quantization] // 16
        trained = adapters.footprint(loaded, self.max_adapters, self.max_adapter_rank)
        return loaded + trained + self.kv_cache + _PROCESS

    def sleep_footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        if device == "cpu":  # vLLM accepts sleep requests there but frees nothing
            return None
        return _RESIDUE, self.footprint(weights, device) - self.kv_cache - _PROCESS

    @property
    def trainable(self) -> bool:
        return self.max_adapters > 0

    def runner_options(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        options = super().runner_options(adapted=adapted, weights=weights)
        # Without adapters vLLM is loaded without LoRA, which makes it a sixth slower on a CPU.
        return options if adapted else {**options, "max_adapters": 0}

    def training_footprint(self, weights: WeightSize) -> int:
        # Weights in float32, and as much again for gradients and activations.
        return 2 * weights.in_32_bits + _PROCESS


class ImageVllmOptions(VllmOptions):
    """``VllmOptions`` of a model that accepts images, as its weights say; users cannot set this."""

    UNVERSIONED = VllmOptions.UNVERSIONED | {"accepts_images"}

    accepts_images: Literal[True] = True


def _accepts_images(folder: Path) -> bool:
    """Return whether config.json describes a part of the model for images."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        return False  # vLLM reports the damaged file when it loads the model
    return isinstance(config, dict) and "vision_config" in config


class VllmModel(AdaptableModel):
    """A language model served by vLLM."""

    SCALES = False
    ACROSS_MACHINES = True
    ADAPTERS_ADD_MEMORY = False  # vLLM reserves memory for `max_adapters`

    kind: Literal["vllm"] = Field(description="A language model, served by vLLM.")
    source: WeightsSource = Field(description="Source of the weights.")
    options: VllmOptions = subsection(VllmOptions(), "Options of this kind.")

    @model_validator(mode="before")
    @classmethod
    def _without_adapters_on_several_machines(cls, value: Any) -> Any:
        """Make 0 the default of ``options.max_adapters`` for a model on several machines."""
        if not isinstance(value, dict) or value.get("machines", 1) == 1:
            return value
        options = value.get("options")
        if options is None or isinstance(options, dict):
            return {**value, "options": {"max_adapters": 0, **(options or {})}}
        return value

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        options = self.options
        if options.max_model_len is not None and options.max_tokens >= options.max_model_len:
            message = (
                f"{options.max_tokens} output tokens leave none for the prompt: set it below max_model_len"
            )
            yield "options.max_tokens", f"{message} ({options.max_model_len})"
        if reason := kv_cache.conflict(options.kv_cache, self.memory):
            yield "options.kv_cache", reason
        if (self.adapters or self.adapter_sources) and not options.max_adapters and self.machines == 1:
            yield (
                "options.max_adapters",
                "0 allows no adapters: raise it, or remove the adapters of the model",
            )
        yield from self._conflicts_of_machines()
        for name, reason in engine_arguments.problems(options.engine):
            yield f"options.engine.{name}", reason

    def _conflicts_of_machines(self) -> Iterator[tuple[str, str]]:
        if self.machines == 1:
            if self.options.across_machines == "tensor":
                yield "options.across_machines", "the model is on one machine: set machines, or remove this"
            return
        reason = "adapters and trainings need a model on one machine: remove it, or remove machines"
        for key in ("adapters", "adapter_sources"):
            if getattr(self, key):
                yield key, reason
        if self.options.max_adapters:
            yield "options.max_adapters", reason

    def adapter_problem(self, folder: Path) -> str | None:
        return super().adapter_problem(folder) or adapters.problem(folder, self.options.max_adapter_rank)
