"""Adds names to ``cog`` that only older versions have, and makes Replicate's client read its token again.

This module is copied into a project's environment and imports nothing from the appliance. A ``.pth`` file
imports it when Python starts. It patches ``cog`` and ``replicate.client`` when the project imports them.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any


class _Shims(importlib.abc.MetaPathFinder):
    """Import hook: calls the function of each named module with the module, once it is loaded."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        patch = self._patches.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader only
        return spec


def patch_cog(cog: Any) -> None:
    """Add ``cog.exceptions``, ``cog.server.exceptions`` and ``BasePredictor.log`` where they are missing."""
    for name in ("cog.exceptions", "cog.server.exceptions"):
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.CancelationException = cog.CancelationException  # type: ignore[attr-defined]  # a new module
            sys.modules[name] = module
            if name == "cog.exceptions":
                cog.exceptions = module
    if not hasattr(cog.BasePredictor, "log"):
        cog.BasePredictor.log = lambda self, *messages: print(*messages)
    import cog_worker  # type: ignore[import-not-found]  # it is in the project's environment only

    cog_worker.install()


def patch_replicate(client: Any) -> None:
    """Make Replicate's client read its token before each request: every prediction has its own token.

    Unpatched, ``replicate.run`` keeps one client, and thus its first token, until the process ends.
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


sys.meta_path.insert(0, _Shims({"cog": patch_cog, "replicate.client": patch_replicate}))
