"""Copies of a tokenizer are made in threads, after the engine core has started."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from appliance.runners.vllm import tokenizer_copies


class Pool:
    """A tokenizer that is used through copies."""

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        assert threading.current_thread() is not threading.main_thread()
        self.copies += 1
        return [str(id) for id in ids]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The two modules of vLLM, with functions that note how many copies there are."""
    renderers, hf = ModuleType("vllm.renderers"), ModuleType("vllm.renderers.hf")
    engine, utils = ModuleType("vllm.v1.engine"), ModuleType("vllm.v1.engine.utils")
    found: Any = (hf, utils)
    found[0].maybe_make_thread_pool = lambda _tokenizer, copies=1: Pool(copies)
    found[1].wait_for_engine_startup = lambda seconds: f"waited {seconds} s"
    renderers.hf, engine.utils = hf, utils  # type: ignore[attr-defined]
    for module in (ModuleType("vllm"), renderers, hf, ModuleType("vllm.v1"), engine, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return hf, utils


def test_copies_are_made_once_the_core_has_started(vllm: tuple[Any, Any]) -> None:
    hf, utils = vllm
    before = hf.maybe_make_thread_pool, utils.wait_for_engine_startup
    with tokenizer_copies.made_while_core_starts():
        pool = hf.maybe_make_thread_pool("tokenizer", 2)
        assert pool.copies == 0
        assert utils.wait_for_engine_startup(3) == "waited 3 s"
    assert pool.copies == 2
    assert (hf.maybe_make_thread_pool, utils.wait_for_engine_startup) == before


def test_a_core_that_does_not_start_leaves_vllm_as_it_was(vllm: tuple[Any, Any]) -> None:
    hf, utils = vllm
    before = hf.maybe_make_thread_pool, utils.wait_for_engine_startup
    with pytest.raises(RuntimeError), tokenizer_copies.made_while_core_starts():
        raise RuntimeError
    assert (hf.maybe_make_thread_pool, utils.wait_for_engine_startup) == before
