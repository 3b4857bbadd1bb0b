"""The model kinds of models.yaml, one package each.

To add a kind, copy ``runners/echo/`` and edit, file by file:

    runners/<kind>/__init__.py      ``KIND``: the kind's name, its classes and the modules to preload
    runners/<kind>/options.py       its options in models.yaml with the memory footprint, and its
                                    ``ModelConfig`` class with `kind`, `source` and `options`
    runners/<kind>/runner.py        the ``Runner``: inputs and output, loading, predictions
    models.yaml                     a commented example with every option
    tests/unit/runners/<kind>/      its tests

There is no other list of kinds: ``KINDS`` is built from the packages in this folder. ``config`` imports
every ``options.py``, so a kind's package must not import ``config`` or ``weights``. Options and
``Runner.interface`` run in the gateway, so only ``Runner.setup`` may import heavy libraries.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from appliance.runners.base import Kind, Runner

if TYPE_CHECKING:
    from appliance.runners.model_config import ModelConfig


def _kinds() -> Iterator[Kind]:
    for package in pkgutil.iter_modules(__path__):
        if package.ispkg:
            module = importlib.import_module(f"{__name__}.{package.name}")
            yield from (value for value in vars(module).values() if isinstance(value, Kind))


#: Every kind of models.yaml, and the trainers `cog-train` and `lora`, which train new versions of models.
KINDS: Final = {kind.name: kind for kind in _kinds()}


def _imported(path: str) -> Any:
    """Return the class at ``path``, such as "package.module:Class"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def runner_class(kind: str) -> type[Runner]:
    """Import and return the runner class of a kind.

    Raises:
        KeyError: no such kind exists.
    """
    return cast("type[Runner]", _imported(KINDS[kind].runner))


@functools.cache
def model_configs() -> dict[str, type[ModelConfig]]:
    """Return the ``ModelConfig`` class of each kind that models.yaml can have; trainers have none."""
    return {name: _imported(kind.model) for name, kind in KINDS.items() if kind.model is not None}


def kinds_with_operation(*operations: str) -> set[str]:
    """Return the kinds that support at least one of ``operations``, constants of ``runners.operations``."""
    return {name for name, kind in KINDS.items() if not kind.operations.isdisjoint(operations)}


def preloaded_modules(kind: str, device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """Return the modules that the zygote, which forks the worker processes, imports for this kind."""
    known = KINDS[kind]
    return known.preload + (known.preload_on_cpu if device == "cpu" else ())


def hidden_packages(device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """Return the packages that are hidden from libraries in the zygote and in worker processes.

    vLLM imports Ray for engines on several machines, but here each engine runs on one machine. torch imports
    Triton, which has no backend for CPUs. Both imports would take memory and time.
    """
    return ("ray", "triton") if device == "cpu" else ("ray",)
