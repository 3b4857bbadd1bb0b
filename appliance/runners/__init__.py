"""The model kinds of models.yaml, one package each.

To add a kind, copy ``runners/echo/`` and edit, file by file:

    runners/<kind>/options.py       options of the kind in models.yaml, and its memory footprint
    runners/<kind>/runner.py        the ``Runner``: inputs and output, loading, predictions
    runners/<kind>/__init__.py      ``KIND``: the runner's class and the modules to preload
    runners/__init__.py             one line in ``KINDS``
    config/models.py                a ``ModelConfig`` class with ``kind``, ``source`` and ``options``, and one
                                    line in ``MODELS``
    config/sections.py              the class in ``_AnyModel``
    weights/complete_options.py     only if options are read from the weights, as for `diffusers` and `piper`
    models.yaml                     a commented example with every option
    tests/unit/runners/<kind>/      its tests

``config`` imports every ``options.py``, so a kind's package must not import ``config`` or ``weights``.
Options and ``Runner.interface`` run in the gateway: heavy libraries are imported in ``Runner.setup``.
"""

from __future__ import annotations

import importlib
from typing import Final, Literal, cast

from appliance.runners import (
    cog,
    diffusers,
    echo,
    embeddings,
    lora_training,
    piper,
    transformers,
    vllm,
    whisper,
)
from appliance.runners.base import Kind, Runner

#: Every kind of models.yaml, and the trainers `cog-train` and `lora`, which train new versions of models.
KINDS: Final[dict[str, Kind]] = {
    "cog": cog.KIND,
    "cog-train": cog.TRAINER,
    "diffusers": diffusers.KIND,
    "echo": echo.KIND,
    "embeddings": embeddings.KIND,
    "lora": lora_training.KIND,
    "piper": piper.KIND,
    "transformers": transformers.KIND,
    "vllm": vllm.KIND,
    "whisper": whisper.KIND,
}


def runner_class(kind: str) -> type[Runner]:
    """Import and return the runner class of a kind.

    Raises:
        KeyError: no such kind exists.
    """
    module, _, name = KINDS[kind].runner.partition(":")
    return cast("type[Runner]", getattr(importlib.import_module(module), name))


def kinds_with_operation(operation: str) -> set[str]:
    """Return the kinds whose runners answer ``operation``, a constant of ``runners.operations``."""
    return {name for name, kind in KINDS.items() if operation in kind.operations}


def preloaded_modules(kind: str, device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """Return the modules that the zygote imports before it forks worker processes of this kind."""
    known = KINDS[kind]
    return known.preload + (known.preload_on_cpu if device == "cpu" else ())
