"""LoRA adapters of a loaded pipeline: each is loaded at its first prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.domain.errors import PredictionFailed
from appliance.runners import failures
from appliance.runners.adapters import EXTRA, LORA

_KEPT: Final = 8  # loaded adapters; of more, those that were used least recently are removed
#: Errors of diffusers, peft and safetensors about files that do not fit the pipeline.
_LIBRARY_ERRORS: Final = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)


class ChosenAdapter(NamedTuple):
    """An adapter of one prediction."""

    path: str
    scale: float


def chosen(own: str | None, input: Mapping[str, Any]) -> list[ChosenAdapter]:
    """Return the adapters of a prediction; ``own`` is the path of the adapter that the model itself is."""
    found = []
    if first := own or input.get(LORA):
        found.append(ChosenAdapter(first, input.get("lora_scale", 1.0)))
    if extra := input.get(EXTRA):
        found.append(ChosenAdapter(extra, input.get("extra_lora_scale", 1.0)))
    return found


class PipelineAdapters:
    """The adapters of one loaded pipeline. Methods block, and run one at a time."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._names: dict[
            str, str
        ] = {}  # by path, the least recently used first; names are those in diffusers
        self._count = 0

    def choose(self, pipe: Any, adapters: list[ChosenAdapter]) -> None:
        """Let ``pipe`` compute with exactly these adapters.

        Raises:
            PredictionFailed: an adapter does not fit the pipeline, or the pipeline supports none.
        """
        if not adapters:
            if self._names:
                pipe.disable_lora()
            return
        if not hasattr(pipe, "load_lora_weights"):
            raise PredictionFailed(
                f"{self._model} does not support LoRA adapters: its pipeline is {type(pipe).__name__}"
            )
        scales: dict[str, float] = {}
        for path, scale in adapters:
            name = self._loaded(pipe, path)
            scales[name] = scales.get(name, 0.0) + scale
        self._drop(pipe, keep=scales)
        pipe.enable_lora()
        pipe.set_adapters(list(scales), list(scales.values()))

    def _loaded(self, pipe: Any, path: str) -> str:
        """Load the adapter unless it is loaded; return its name in diffusers."""
        if path in self._names:
            self._names[path] = self._names.pop(path)  # now it is the most recently used
            return self._names[path]
        self._count += 1
        name, file = f"adapter-{self._count}", Path(path)
        in_folder = {"weight_name": file.name} if file.is_file() else {}
        try:
            pipe.load_lora_weights(
                file.parent if in_folder else file,
                adapter_name=name,
                local_files_only=True,
                use_safetensors=True,
                **in_folder,
            )
            known = {each for names in pipe.get_list_adapters().values() for each in names}
        except _LIBRARY_ERRORS as error:
            with contextlib.suppress(*_LIBRARY_ERRORS):  # parts of it may be loaded
                pipe.delete_adapters(name)
            if not self._names:
                with contextlib.suppress(*_LIBRARY_ERRORS):
                    pipe.unload_lora_weights()
            reason = failures.summary(" ".join(str(error).split()) or type(error).__name__, ())
            raise PredictionFailed(f"the adapter {path} does not fit {self._model}: {reason}") from error
        if name not in known:
            raise PredictionFailed(
                f"the adapter {path} does not fit {self._model}: it changes no layer of this pipeline"
            )
        self._names[path] = name
        return name

    def _drop(self, pipe: Any, keep: Mapping[str, float]) -> None:
        for path, name in list(self._names.items())[:-_KEPT]:
            if name not in keep:
                pipe.delete_adapters(name)
                del self._names[path]
