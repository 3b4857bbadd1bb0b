"""Adds what older Cog projects use and today's cog lacks, and a fix for Replicate's client in projects.

Copied into a project's own environment; nothing of the appliance is imported here. A line in a ``.pth`` file
imports this module when Python starts; it adds what is missing once the project imports either.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any


class _Shims(importlib.abc.MetaPathFinder):
    """Finds modules as usual, and lends a hand after they were loaded."""

    def __init__(self, hands: dict[str, Callable[[Any], None]]) -> None:
        self._hands = hands

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Part of the import protocol."""
        hand = self._hands.pop(name, None)
        if hand is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                hand(module)

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
    import cog_worker  # type: ignore[import-not-found]  # beside this file in the project's environment

    cog_worker.install(cog)


def ask_for_each(client: Any) -> None:
    """Have Replicate's client ask for its token at each request, as that is another for each prediction.

    It asks once, and ``replicate.run`` is of one client for the life of the process.
    """
    build = getattr(client, "_build_httpx_client", None)
    token = getattr(client, "_get_api_token_from_environment", None)
    if build is None or token is None:
        return

    def sign(request: Any) -> None:
        found = token()
        if found:
            request.headers["Authorization"] = f"Bearer {found}"

    async def sign_async(request: Any) -> None:
        sign(request)

    def built(client_type: Any, api_token: Any = None, *arguments: Any, **options: Any) -> Any:
        if api_token is None:
            hook = sign_async if "Async" in client_type.__name__ else sign
            hooks = options.get("event_hooks") or {}
            options["event_hooks"] = {**hooks, "request": [*hooks.get("request", ()), hook]}
        return build(client_type, api_token, *arguments, **options)

    client._build_httpx_client = built  # noqa: SLF001 - there is no public way


sys.meta_path.insert(0, _Shims({"cog": add, "replicate.client": ask_for_each}))
