"""Patches of vLLM's structured outputs: grammars are checked before a request is queued, and each is compiled
by the backend that checked it.

Written for vLLM 0.32, which checks a request with the first backend that accepts its grammar (xgrammar,
guidance or outlines), but compiles all grammars with the backend of the first request that had one. If that
backend cannot compile a grammar, or no output can match it, vLLM fails the request with a server error.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import re
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_POSITION: Final = re.compile(r"\[[\d:]+\] \S+:\d+: ")  # a position in xgrammar's source code
_CACHE: Final = 16 * 1024**2  # bytes of compiled grammars cached in this process; vLLM has its own cache


def use_own_backends() -> None:
    """Patch vLLM to compile each grammar with the backend that checked it; forked engine cores inherit it."""
    from vllm.v1.structured_output import StructuredOutputManager

    manager: Any = StructuredOutputManager
    if hasattr(manager, "appliance_lock"):
        return
    manager.appliance_lock = threading.RLock()
    init, create = manager.grammar_init, manager._create_grammar  # noqa: SLF001 - see the module's docstring

    def grammar_init(self: Any, request: Any) -> None:
        if request.structured_output_request is None:
            return
        known = self.__dict__.setdefault("appliance_backends", {})
        name = request.sampling_params.structured_outputs._backend  # noqa: SLF001 - as above
        with manager.appliance_lock:  # held until the backend is set, because a thread compiles with it
            self.backend = known.get(name)
            init(self, request)
            known[name] = self.backend

    def create_grammar(self: Any, request: Any) -> Any:
        with manager.appliance_lock:
            view = copy.copy(self)
            name = request.sampling_params.structured_outputs._backend  # noqa: SLF001 - as above
            view.backend = self.appliance_backends.get(name, self.backend)
        return create(view, request)

    manager.grammar_init, manager._create_grammar = grammar_init, create_grammar  # noqa: SLF001 - as above


def check_grammars(engine: AsyncLLM) -> None:
    """Make ``engine`` refuse requests whose grammars cannot be compiled, with HTTP status 400."""
    compiler = _Compiler(engine)
    add: Callable[..., Awaitable[Any]] = engine.add_request

    @functools.wraps(add)
    async def add_request(request_id: str, prompt: Any, params: Any, *more: Any, **named: Any) -> Any:
        if getattr(params, "structured_outputs", None) is not None:
            await asyncio.to_thread(compiler.check, params)
        return await add(request_id, prompt, params, *more, **named)

    engine.add_request = add_request  # all kinds of requests call it


class _Compiler:
    """Compiles grammars with the same settings as the engine."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._config: Any = engine.vllm_config
        self._tokenizer: Any = engine.get_tokenizer()
        self._backends: dict[str, Any] = {}
        self._width = 0  # width of a row of the bitmask that all grammars share
        self._lock = threading.Lock()

    def check(self, params: SamplingParams) -> None:
        """Check that a grammar can be compiled and that some output can match it.

        Raises:
            VLLMValidationError: the message has the reason; vLLM responds with status 400.
        """
        from vllm.exceptions import VLLMValidationError

        copied = params.clone()
        settings: Any = copied.structured_outputs
        if settings is None or settings.all_constraints_none():
            return
        try:
            with self._lock:
                copied._validate_structured_outputs(  # noqa: SLF001 - it also chooses the backend
                    self._config.model_config, self._config.structured_outputs_config, self._tokenizer
                )
                self._compile(params, settings)
        except Exception as error:  # each backend has its own exceptions
            reason = " ".join(_POSITION.sub("", str(error)).split()) or type(error).__name__
            raise VLLMValidationError(f"this schema or grammar cannot be used: {reason[:400]}") from error

    def _compile(self, params: SamplingParams, settings: Any) -> None:
        """Compile the grammar in the validated structured-output ``settings`` of ``params``.

        Raises:
            ValueError: the grammar cannot be compiled, or no output can match it.
        """
        from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar
        from vllm.v1.structured_output.request import get_structured_output_key

        name = settings._backend  # noqa: SLF001 - see the module's docstring
        if name == "outlines":  # the fallback of the others; it ignores unknown keywords
            validate_xgrammar_grammar(params.clone())
        backend = self._backend(name)
        grammar = backend.compile_grammar(*get_structured_output_key(settings))
        if name == "guidance" and (reason := grammar.ll_matcher.get_error()):
            raise ValueError(reason)
        allowed = backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(allowed, 0)
        if not allowed.any():
            raise ValueError("no output can match it")

    def _backend(self, name: str) -> Any:
        """Return the backend of this name.

        Raises:
            ValueError: the backend needs a bitmask of another width than the backends before it.
        """
        if name not in self._backends:
            self._backends[name] = _new_backend(name, self._config, self._tokenizer)
        width = int(self._backends[name].allocate_token_bitmask(1).shape[1])
        self._width = self._width or width
        if width != self._width:
            raise ValueError(f"the vocabulary of this model is too large for the grammar backend {name}")
        return self._backends[name]


def _new_backend(name: str, config: Any, tokenizer: Any) -> Any:
    """Return a new backend, configured as in the engine."""
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend
    from vllm.v1.structured_output.backend_outlines import OutlinesBackend
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend, xgr

    kinds: dict[str, Any] = {
        "xgrammar": XgrammarBackend, "guidance": GuidanceBackend, "outlines": OutlinesBackend,
    }  # fmt: skip
    size = config.model_config.get_vocab_size()
    backend = kinds[name](config, tokenizer=tokenizer, vocab_size=size)
    if name == "xgrammar":
        info = xgr.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
        backend.compiler = xgr.GrammarCompiler(info, max_threads=1, cache_limit_bytes=_CACHE)
    return backend
