"""The model kinds: one package for each, with its options, interface, inputs, runner and preloaded modules.

Importing a kind's package is cheap; heavy libraries load in ``setup``.
"""

from __future__ import annotations

import importlib
from typing import Final, Literal, cast

from appliance.runners import cog, diffusers, echo, embeddings, lora, piper, transformers, vllm, whisper
from appliance.runners.base import Kind, Runner

#: The kinds of models.yaml by name, and the kinds of runners that train new versions of them.
KINDS: Final[dict[str, Kind]] = {
    "cog": cog.KIND,
    "cog-train": cog.TRAINER,
    "diffusers": diffusers.KIND,
    "echo": echo.KIND,
    "embeddings": embeddings.KIND,
    "lora": lora.KIND,
    "piper": piper.KIND,
    "transformers": transformers.KIND,
    "vllm": vllm.KIND,
    "whisper": whisper.KIND,
}


def runner_class(kind: str) -> type[Runner]:
    """Import and return the runner class of a kind.

    Raises:
        KeyError: there is no such kind. The config and the catalogue name only kinds that exist.
    """
    module, _, name = KINDS[kind].runner.partition(":")
    return cast("type[Runner]", getattr(importlib.import_module(module), name))


def preloaded_modules(kind: str, device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """Modules that the zygote imports before it forks worker processes of this kind."""
    known = KINDS[kind]
    return known.preload + (known.preload_on_cpu if device == "cpu" else ())
