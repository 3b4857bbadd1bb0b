"""Loads models of kind `transformers`; defines the input and the result of their predictions.

Weights are read from safetensors only, because other formats can contain code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed

if TYPE_CHECKING:
    import torch


class LoadRequest(NamedTuple):
    """What to load: folder, device, number format and limits."""

    folder: Path
    device: str  # "cpu" or "cuda:0"
    dtype: str  # "auto" or the name of one of torch's
    max_batch: int
    trust_remote_code: bool
    models: list[Any]  # every model of torch that is loaded is added here


class TaskInput(NamedTuple):
    """Input of one prediction."""

    input: Mapping[str, Any]  # checked and complete; files are paths
    folder: Path  # for files that are made; need not exist
    cancelled: threading.Event  # set when the prediction is canceled


class TaskResult(NamedTuple):
    """Result of one prediction. Files in the output are paths."""

    output: Any
    metrics: Mapping[str, Any] = MappingProxyType({})


Compute = Callable[[TaskInput], TaskResult]

#: Weights that are used in training only, and often left out.
_FOR_TRAINING: Final = ("masked_spec_embed",)


def model_type(loading: LoadRequest) -> str:
    """Return transformers' name of the architecture; empty if the config has none."""
    described = json.loads((loading.folder / "config.json").read_bytes())
    return str(described.get("model_type", "")) if isinstance(described, dict) else ""


def from_folder(kind: Any, loading: LoadRequest, **more: Any) -> Any:
    """Load a tokenizer, processor or the like from the folder."""
    return kind.from_pretrained(
        loading.folder, local_files_only=True, trust_remote_code=loading.trust_remote_code, **more
    )


def model_of(loading: LoadRequest, kind: str) -> Any:
    """Load the model; refuse missing weights, which the library would fill with random numbers.

    Raises:
        LoadFailed: weights are missing.
    """
    import transformers

    model, about = getattr(transformers, kind).from_pretrained(
        loading.folder,
        local_files_only=True,
        trust_remote_code=loading.trust_remote_code,
        use_safetensors=True,
        dtype=loading.dtype,
        output_loading_info=True,
    )
    missing = sorted(name for name in about["missing_keys"] if not name.endswith(_FOR_TRAINING))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise LoadFailed(f"the weights do not fit this task: missing are {', '.join(missing[:5])}{more}")
    placed = model.to(loading.device).eval()
    loading.models.append(placed)
    return placed


def pipeline_of(loading: LoadRequest, task: str, model: Any, **parts: Any) -> Any:
    """A pipeline of the library around the model."""
    from transformers import pipeline

    return pipeline(
        task, model=model, device=loading.device, trust_remote_code=loading.trust_remote_code, **parts
    )


def stopping_criteria(cancelled: threading.Event) -> Any:
    """Return a criterion that stops generation between two tokens after a cancel."""
    import torch
    from transformers import StoppingCriteriaList

    def stops(tokens: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        return torch.full((tokens.shape[0],), cancelled.is_set(), device=tokens.device)

    return StoppingCriteriaList([stops])


def most_tokens(model: Any, tokenizer: Any) -> int | None:
    """Return the maximum number of input tokens; None if neither the model nor its tokenizer gives it."""
    limits = (_positions(model), tokenizer.model_max_length)
    return min((int(limit) for limit in limits if limit and limit < 1_000_000), default=None)  # more: not set


def _positions(model: Any) -> int | None:
    """The number of positions for tokens; None if the config does not give it.

    Architectures like RoBERTa's count positions from ``padding_idx + 1``; smaller positions are unused:
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/roberta/modeling_roberta.py
    """
    names = ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions")
    said = (getattr(model.config, name, None) for name in names)
    positions = next((each for each in said if isinstance(each, int) and each > 0), None)
    if positions is None:
        return None
    for name, module in model.named_modules():
        first = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and first is not None:
            return positions - int(first) - 1
    return positions


def fit(model: Any, tokenizer: Any, text: str) -> None:
    """Refuse a text that is longer than the model accepts, instead of truncating it.

    Raises:
        PredictionFailed: the text is too long.
    """
    limit = most_tokens(model, tokenizer)
    if limit is None:
        return
    count = len(tokenizer(text, verbose=False)["input_ids"])
    if count > limit:
        raise PredictionFailed(
            f"input.text: the text has {count} tokens, but this model accepts at most {limit}; shorten it"
        )
