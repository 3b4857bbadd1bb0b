"""Recognise LoRA adapters, which are served with the model that they were made for."""

from __future__ import annotations

from typing import Final

from appliance.adding.listing import Listing
from appliance.domain.errors import WeightsError
from appliance.runners import model_configs

_PEFT: Final = "adapter_config.json"
_DIFFUSERS: Final = "pytorch_lora_weights.safetensors"
#: Files of whole models; a repository with one of them is no adapter, even if it has the tag `lora`.
_WHOLE: Final = ("config.json", "model_index.json", "cog.yaml")


def refuse_adapter(listing: Listing) -> None:
    """Refuse a source that is a LoRA adapter instead of a whole model.

    Raises:
        WeightsError: the source is a LoRA adapter; the message names its base model and what to write.
    """
    names = set(listing.sizes)
    if _PEFT in names:
        config = listing.json(_PEFT)
        base = config.get("base_model_name_or_path")
        kind = "vllm" if config.get("task_type") in {"CAUSAL_LM", None} else "diffusers"
    elif _DIFFUSERS in names or ("lora" in listing.tags and not names & set(_WHOLE)):
        base, kind = None, "diffusers"
    else:
        return
    named = str(base or listing.base_model or "a model that its files do not name")
    raise WeightsError(
        f"{listing.title} is a LoRA adapter for {named} and cannot be served alone: {_remedy(kind, named)}"
    )


def _remedy(kind: str, base: str) -> str:
    """Return what to do with an adapter for ``base``, a model of this kind."""
    config = model_configs()[kind]
    options = config.model_fields["options"].annotation
    key = None
    if "adapters" in config.model_fields:
        key = "adapters"
    elif "adapters" in getattr(options, "model_fields", {}):
        key = "options.adapters"
    if key is not None:
        return f"add {base}, and name the adapter under the key {key} of that model in models.yaml"
    if kind == "diffusers":
        return f"add {base}, download the adapter, and name its file in the option loras of that model"
    return "add a repository with merged weights"
