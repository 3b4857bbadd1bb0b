"""Settings and limits of the transformers library, for the kinds that load models with it."""

from __future__ import annotations

import os
from typing import Any


def prepare_libraries(threads: int) -> None:
    """Keep transformers from contacting the Hugging Face hub, and set the number of CPU threads of torch."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    import huggingface_hub.constants
    import torch

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the zygote may have imported it before
    torch.set_num_threads(threads)


def max_input_tokens(model: Any, tokenizer: Any) -> int | None:
    """Return the maximum number of input tokens; None if neither model nor tokenizer has a limit."""
    limits = (_token_positions(model), tokenizer.model_max_length)
    # Tokenizers without a limit have a number such as 1e30.
    return min((int(limit) for limit in limits if limit and limit < 1_000_000), default=None)


def _token_positions(model: Any) -> int | None:
    """Return the number of token positions of the model; None if its config has no such number.

    Architectures like RoBERTa's count positions from ``padding_idx + 1``; smaller positions are unused:
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/roberta/modeling_roberta.py
    """
    names = ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions")
    # Models for images and texts have a config of their own for texts.
    configs = (model.config, getattr(model.config, "text_config", None))
    values = (getattr(config, name, None) for config in configs for name in names)
    positions = next((value for value in values if isinstance(value, int) and value > 0), None)
    if positions is None:
        return None
    for name, module in model.named_modules():
        first = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and first is not None:
            return positions - int(first) - 1
    return positions
