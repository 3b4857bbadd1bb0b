"""LoRA adapters: the trained versions of a language model, which run on the loaded base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import errors

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


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


class Adapters:
    """Loads adapters into an engine."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine
        self._ids: dict[str, int] = {}  # by folder; vLLM identifies adapters by numbers

    async def load(self, folder: str) -> LoRARequest:
        """Load the adapter in ``folder``, unless it is loaded; return the argument of vLLM for predictions.

        Raises:
            PredictionFailed: the adapter cannot be loaded.
            EngineDeadError: the engine core has ended.
        """
        if not (Path(folder) / "adapter_config.json").is_file():  # vLLM would try to download it
            raise PredictionFailed(
                f"the trained weights of this version are missing at {folder}; train the version again"
            )
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
                f"the trained weights of this version cannot be loaded: {errors.translate(str(error))}"
            ) from error
        return request
