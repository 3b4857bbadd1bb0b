"""Changes to the processes of a measured appliance, made when they import certain modules.

``site/sitecustomize.py`` calls ``install`` in every process whose PYTHONPATH has the folder ``SITE``. The
environment variables ``ENGINE`` and ``SPANS`` choose what is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

SITE: Final = Path(__file__).parent / "site"
#: Set to 1: the echo model emits tokens in the rhythm of an inference engine: see ``step_engine``.
ENGINE: Final = "BENCH_ENGINE"
#: A folder: every process records times of a prediction there: see ``span_recorder``.
SPANS: Final = "BENCH_SPANS"

Change = Callable[[ModuleType], None]


def variables(**chosen: str) -> dict[str, str]:
    """Return the environment variables of an appliance with hooks; ``chosen`` are ENGINE and SPANS."""
    path = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), **chosen}


def install() -> None:
    """Change the modules that the environment names, once they are imported."""
    changes: dict[str, list[Change]] = {}
    if os.environ.get(ENGINE):
        from scripts.benchmarks import step_engine

        changes.setdefault(step_engine.MODULE, []).append(step_engine.change)
    if folder := os.environ.get(SPANS):
        from scripts.benchmarks import span_recorder

        for module in span_recorder.modules():
            changes.setdefault(module, []).append(span_recorder.change_in(Path(folder)))
    if changes:
        sys.meta_path.insert(0, _Finder(changes))


class _Finder(MetaPathFinder):
    def __init__(self, changes: dict[str, list[Change]]) -> None:
        self._changes = changes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        changes = self._changes.get(fullname)
        if changes is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ChangingLoader(spec.loader, changes)
        return spec


class _ChangingLoader(Loader):
    """Executes a module and then changes it."""

    def __init__(self, loader: Loader, changes: list[Change]) -> None:
        self._loader = loader
        self._changes = changes

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for change in self._changes:
            change(module)
