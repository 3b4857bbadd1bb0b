"""Import Gradio without work that no page needs, which is half of the processor time of the import.

Gradio has no option for either:

- It writes or compares a ``.pyi`` file of each component, for editors, whenever the component is imported.
- It imports ``mcp``, a large library, if that is installed. vLLM installs it; no page serves MCP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _GradioFinder(PathFinder):
    """Finds Gradio like Python does, and changes how two of its modules are executed."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        execute = {"gradio": _without_mcp, "gradio.component_meta": _without_stubs}.get(fullname)
        spec = super().find_spec(fullname, path, target) if execute is not None else None
        if spec is None or spec.loader is None or execute is None:
            return None
        loader: Any = spec.loader
        original = loader.exec_module
        loader.exec_module = lambda module: execute(original, module)
        return spec


def _without_mcp(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    hidden = "mcp" not in sys.modules
    if hidden:
        sys.modules["mcp"] = None  # type: ignore[assignment]  # makes its import raise ModuleNotFoundError
    try:
        execute(module)
    finally:
        if hidden:
            del sys.modules["mcp"]


def _without_stubs(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]


def install() -> None:
    """Apply this to the import of Gradio, if it has not been imported yet."""
    if _GradioFinder not in sys.meta_path:
        sys.meta_path.insert(0, _GradioFinder)
