"""What older Cog projects use and Cog's package has no longer; copied into a project's own environment.

Nothing of the appliance is imported here. A line in a ``.pth`` file imports this module when Python starts;
it adds what is missing once the project imports ``cog``.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import types
from typing import Any


class _Shims(importlib.abc.MetaPathFinder):
    """Finds ``cog`` as usual, and lends a hand after it was loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Part of the import protocol."""
        if name != "cog":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("cog")
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                add(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec


def add(cog: Any) -> None:
    """Add ``cog.exceptions``, ``cog.server.exceptions`` and ``BasePredictor.log`` where they are missing."""
    for name in ("cog.exceptions", "cog.server.exceptions"):
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.CancelationException = cog.CancelationException  # type: ignore[attr-defined]  # made here
            sys.modules[name] = module
            if name == "cog.exceptions":
                cog.exceptions = module
    if not hasattr(cog.BasePredictor, "log"):
        cog.BasePredictor.log = lambda self, *messages: print(*messages)


sys.meta_path.insert(0, _Shims())
