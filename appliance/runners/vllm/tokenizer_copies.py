"""Copies vLLM's tokenizer while the engine core starts, not before.

vLLM copies the tokenizer of a model for each thread that uses it, and only then starts the engine core. For a
small model the copies take as long as loading its weights.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def made_while_core_starts() -> Iterator[None]:
    """Within this context, an engine makes the copies of its tokenizer in threads, once its core was forked.

    If a copy is needed earlier, vLLM makes it at that time.
    """
    from vllm.renderers import hf
    from vllm.v1.engine import utils

    modules: tuple[Any, Any] = hf, utils
    make_pool, wait = modules[0].maybe_make_thread_pool, modules[1].wait_for_engine_startup
    copying: list[threading.Thread] = []  # to be started

    def make_empty_pool(tokenizer: Any, copies: int = 1) -> Any:
        pool = make_pool(tokenizer, 0)
        copying.extend(threading.Thread(target=_add_copy, args=(pool,)) for _ in range(copies))
        return pool

    def copy_and_wait(*arguments: Any, **keywords: Any) -> Any:
        for thread in copying:
            thread.start()
        try:
            return wait(*arguments, **keywords)
        finally:
            for thread in copying:
                thread.join()

    modules[0].maybe_make_thread_pool, modules[1].wait_for_engine_startup = make_empty_pool, copy_and_wait
    try:
        yield
    finally:
        modules[0].maybe_make_thread_pool, modules[1].wait_for_engine_startup = make_pool, wait


def _add_copy(pool: Any) -> None:
    """Use ``pool``, a tokenizer that makes a copy of itself if no copy is free, and keeps it."""
    pool.convert_ids_to_tokens([])
