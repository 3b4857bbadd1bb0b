"""LoRA adapters of a language model, which run on the loaded base model: configured, trained or fetched."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance.domain.errors import PredictionFailed
from appliance.runners import safetensors_header
from appliance.runners.vllm import errors

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

#: Name of a tensor in PEFT's format.
_TENSOR: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(\.\w+)?\.weight")


def engine_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of vLLM's engine that enable adapters; none if ``max_adapters`` is 0."""
    if not options["max_adapters"]:
        return {}
    return {
        "enable_lora": True,
        "max_loras": options["max_adapters"],
        "max_lora_rank": options["max_adapter_rank"],
    }


def footprint(model: int, max_adapters: int, max_rank: int) -> int:
    """Return the bytes of all adapters in one batch, for a model of ``model`` bytes."""
    return int(model * max_adapters * max_rank / 800)  # one of rank 16 is about a fiftieth of its model


def problem(folder: Path, max_rank: int) -> str | None:
    """Return why vLLM cannot use the adapter in ``folder``, as far as its config shows; None if it can."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_bytes())
        kind, rank = str(config["peft_type"]), int(config["r"])
    except FileNotFoundError:  # vLLM would try to download it
        return f"{file} does not exist: an adapter of a language model must be a folder in PEFT's format"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file} cannot be used: {type(error).__name__}: {error}"
    if kind != "LORA":
        return f"{file} describes an adapter of the type {kind}, but vLLM runs LoRA adapters only"
    if rank > max_rank:
        return (
            f"the adapter has the rank {rank}, but the model allows {max_rank}: raise max_adapter_rank in "
            "the options of the model"
        )
    return None


def foreign(folder: Path, base: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return why the adapter in ``folder`` belongs to another model; None if its shapes fit.

    ``base`` has the shape of each tensor of the base model. The engine, which other predictions use, must
    not get an adapter that does not fit.
    """
    fitting = 0
    for name, shape in safetensors_header.shapes(folder).items():
        found = _TENSOR.fullmatch(name)
        module = base.get(f"{found['module']}.weight") if found else None
        if found is None or module is None or len(module) != 2:
            continue
        wanted, given = (module[1], shape[1]) if found["part"] == "A" else (module[0], shape[0])
        if wanted != given:
            return f"its {found['module']} has the size {given}, but that of this model has {wanted}"
        fitting += 1
    return None if fitting or not base else "this model has none of the layers that the adapter changes"


class AdapterLoader:
    """Loads adapters into an engine."""

    def __init__(self, engine: AsyncLLM, weights: Path, max_rank: int) -> None:
        """``weights`` is the folder of the base model."""
        self._engine = engine
        self._weights = weights
        self._max_rank = max_rank
        self._ids: dict[str, int] = {}  # by folder; vLLM identifies adapters by numbers

    @functools.cached_property
    def _base(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the base model's tensors. None for quantized layers, whose tensors are packed."""
        return safetensors_header.shapes(self._weights)

    async def load(self, folder: str) -> LoRARequest:
        """Load the adapter in ``folder``, unless it is loaded; return the argument of vLLM for predictions.

        Raises:
            PredictionFailed: the adapter cannot be loaded.
            EngineDeadError: the engine core has ended.
        """
        if folder not in self._ids:
            reason = problem(Path(folder), self._max_rank)
            if reason is None and (reason := foreign(Path(folder), self._base)) is not None:
                reason = f"it was made for another base model: {reason}"
            if reason is not None:
                raise PredictionFailed(f"the adapter {folder} cannot be loaded: {reason}")
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        number = self._ids.setdefault(folder, len(self._ids) + 1)
        # The name is the path, because two adapters of one name are the same to vLLM.
        request = LoRARequest(folder, number, folder)
        try:
            await self._engine.add_lora(request)
        except EngineDeadError:
            raise
        except Exception as error:  # vLLM re-raises any error of the engine core
            raise PredictionFailed(
                f"the adapter {folder} cannot be loaded: {errors.translate(str(error))}"
            ) from error
        return request
