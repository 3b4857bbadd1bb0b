"""Language models, served by vLLM: many predictions computed together, output token by token.

A model whose tokenizer has no chat template, as base models have none, gets its prompt as it is; so does a
prediction with an empty ``prompt_template``. On a CPU everything here has run; on a GPU nothing has yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.base import LoadSpec
from appliance.runners.vllm import engine, errors, inputs
from appliance.runners.vllm.compat import CompatApis

if TYPE_CHECKING:
    from vllm import CompletionOutput, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

_log = logging.getLogger(__name__)

_LONG_TEXT: Final = 20_000  # characters; tokenizing more than these takes milliseconds, and has a thread
_SHUTDOWN_SECONDS: Final = 3.0


class VllmRunner:
    """Runs a language model; ``options.py`` has its options, all of which have values."""

    kind: ClassVar[str] = "vllm"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._defaults = inputs.Defaults.of(spec.options)
        self._engine: AsyncLLM
        self._dialects: CompatApis | None = None
        self._tokenizer: Any
        self._chat_template: str | None = None
        self._system_in_prompt = False  # the chat template knows no system role
        self._adapters: dict[str, int] = {}  # folder -> the number vLLM knows it by
        self._longest = 0  # prompt and output together, in tokens
        self._level = 0  # of its last sleep

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a language model with these options."""
        return inputs.interface(options)

    async def setup(self) -> None:
        """Load the model. This blocks the event loop; nothing else runs in the process yet."""
        spec = self._spec
        if spec.weights is None or not Path(spec.weights).is_dir():
            raise LoadFailed(
                f"model {spec.model}: there are no weights at {spec.weights}; run: appliance pull"
            )
        self._engine = engine.start(spec, Path(spec.weights))
        process = engine.core_process(self._engine)
        asyncio.get_running_loop().add_reader(process.sentinel, self._core_died)
        self._longest = self._engine.model_config.max_model_len
        self._prepare_prompts()
        await self._engine.get_supported_tasks()  # asks the core once; every prediction needs it
        if spec.options["tool_parser"] or spec.options["reasoning_parser"]:
            self._operations()  # a parser that does not fit is said now

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        from vllm.v1.engine.exceptions import EngineDeadError

        adapter = await self._adapter(job)
        events = (
            self._predict(job, adapter) if job.operation is None else self._operations().run(job, adapter)
        )
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        except EngineDeadError:  # seen here before `add_reader` saw it
            self._core_died()

    def _operations(self) -> CompatApis:
        """Return the handlers of the OpenAI and Anthropic APIs, which the first request creates."""
        if self._dialects is None:
            self._dialects = CompatApis(self._engine, self._spec)
        return self._dialects

    async def _predict(self, job: Job, adapter: LoRARequest | None) -> AsyncGenerator[Log | Output | Metric]:
        """The events of the model's own prediction."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        progress = _Progress()
        request = inputs.request(job.input, self._defaults)
        tokens = await self._tokens(request)
        room = inputs.room(len(tokens), self._longest)
        yield Metric("input_token_count", len(tokens))
        if room < job.input.get("max_tokens", 0):
            yield Log(f"max_tokens is lowered from {request.max_tokens} to {room}: no more fits\n")
        try:
            outputs = self._engine.generate(
                tokens_input(tokens),
                _sampling(request, room),
                f"{job.id}-{job.attempt}",
                lora_request=adapter,
            )
            async with contextlib.aclosing(outputs):  # closing it early frees its slot in the engine
                async for output in outputs:
                    for event in progress.take(output.outputs[0]):
                        yield event
        except VLLMClientError as error:
            raise PredictionFailed(errors.translate(str(error))) from error
        for last in progress.end():
            yield last

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that this model supports; empty where sleeping would free nothing."""
        return engine.levels(self._spec)

    async def sleep(self, level: int) -> None:
        """Move the weights to main memory and free the device.

        The bytes still held are unknown here, because vLLM's engine core is a process of its own.
        """
        await self._engine.sleep(level)
        self._level = level

    async def wake(self) -> None:
        """Move the weights back to the device."""
        await engine.wake(self._engine, self._level)

    async def close(self) -> None:
        """Stop the engine's process, which frees its memory."""
        process = engine.core_process(self._engine)
        asyncio.get_running_loop().remove_reader(process.sentinel)
        if "," in self._spec.device:  # its workers have shared memory to give back
            self._engine.shutdown(timeout=_SHUTDOWN_SECONDS)
        else:
            process.kill()  # the system takes everything back at once; vLLM would take a second

    async def _adapter(self, job: Job) -> LoRARequest | None:
        """The trained weights that this prediction is computed with, loaded when they are first asked for.

        Raises:
            PredictionFailed: they cannot be loaded.
        """
        if job.adapter is None:
            return None
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        number = self._adapters.setdefault(job.adapter, len(self._adapters) + 1)
        # The name is the path, since vLLM takes two adapters of one name for the same one.
        request = LoRARequest(job.adapter, number, job.adapter)
        if not (Path(job.adapter) / "adapter_config.json").is_file():  # vLLM would look for it on the hub
            raise PredictionFailed(f"the trained weights of this version are gone from {job.adapter}")
        try:
            await self._engine.add_lora(request)
        except EngineDeadError:
            self._core_died()
        except Exception as error:  # vLLM passes on whatever the core's process raised
            raise PredictionFailed(
                f"the trained weights of this version cannot be loaded: {errors.translate(str(error))}"
            ) from error
        return request

    def _prepare_prompts(self) -> None:
        """Find out how this model wants a conversation written down.

        Raises:
            LoadFailed: the chat template cannot be used.
        """
        tokenizer: Any = self._engine.get_tokenizer()
        if tokenizer is None:
            raise LoadFailed(f"{self._spec.weights} holds no tokenizer; add tokenizer.json to the weights")
        self._tokenizer = tokenizer
        self._chat_template = self._spec.options["chat_template"] or getattr(tokenizer, "chat_template", None)
        if self._chat_template is None:
            _log.info("there is no chat template: prompts are used as they are, system prompts are not")
            return
        try:
            self._conversation("Hello", "Be brief.")
        except Exception as with_system:  # noqa: BLE001  # templates raise what they like
            try:
                self._conversation("Hello", "")
            except Exception as error:  # the same
                raise LoadFailed(
                    f"the chat template of {self._spec.model} cannot be used: {error}; correct it, or set "
                    "chat_template in its options"
                ) from error
            self._system_in_prompt = True
            _log.info("system prompts go before the prompt, as the chat template says: %s", with_system)

    def _conversation(self, prompt: str, system_prompt: str) -> str:
        if self._system_in_prompt and system_prompt:
            prompt, system_prompt = f"{system_prompt}\n\n{prompt}", ""
        text = self._tokenizer.apply_chat_template(
            inputs.messages(prompt, system_prompt),
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(text)

    async def _tokens(self, request: inputs.Request) -> list[int]:
        """The prompt as the model reads it.

        Raises:
            PredictionFailed: E1003 or E1004, the prompt template is wrong; or nothing is left to read.
        """
        if len(request.prompt) + len(request.system_prompt) < _LONG_TEXT:
            tokens = self._encode(request)
        else:
            tokens = await asyncio.to_thread(self._encode, request)
        if not tokens:
            raise PredictionFailed("the prompt is empty; write one")
        return tokens

    def _encode(self, request: inputs.Request) -> list[int]:
        template = request.prompt_template
        tokenizer = self._tokenizer
        if template is None and self._chat_template is not None:
            text, special = self._conversation(request.prompt, request.system_prompt), False
        else:
            text = inputs.fill(template or "", request.prompt, request.system_prompt)
            begin = getattr(tokenizer, "bos_token", None)
            special = not (begin and text.startswith(begin))  # a template may have written it already
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def _core_died(self) -> NoReturn:
        print(
            "the process that computes has ended; the engine host ends with it", file=sys.stderr, flush=True
        )
        os._exit(1)  # there is nothing left to serve, and the replica says what the log says


class _Progress:
    """Turns the output of one prediction into events."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._tokens = 0
        self._reason: str | None = None

    def take(self, new: CompletionOutput) -> Iterator[Metric | Output]:
        """The events of the engine's next output, which holds only what is new."""
        if not self._tokens and new.token_ids:
            yield Metric("time_to_first_token", round(time.perf_counter() - self._started, 6))
        self._tokens += len(new.token_ids)
        self._reason = new.finish_reason
        if new.text:
            yield Output([new.text])

    def end(self) -> Iterator[Log | Metric]:
        """The last events.

        Raises:
            PredictionFailed: the engine broke off.
        """
        if self._reason == "error":
            raise PredictionFailed("the engine broke this prediction off; the log of its model says why")
        seconds = time.perf_counter() - self._started
        speed = self._tokens / seconds
        yield Metric("output_token_count", self._tokens)
        yield Metric("tokens_per_second", round(speed, 6))
        yield Log(
            f"Generated {self._tokens} tokens in {seconds:.3f} seconds, {speed:.1f} tokens per second\n"
        )


def _sampling(request: inputs.Request, room: int) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = request.temperature == 0 or request.top_p == 0
    max_tokens = min(request.max_tokens, room)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens, max_tokens),
        temperature=0.0 if greedy else request.temperature,
        top_p=1.0 if greedy else request.top_p,
        top_k=max(request.top_k, 0),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        stop=list(request.stop),
        seed=request.seed,
        output_kind=RequestOutputKind.DELTA,  # and joined while nobody takes them
    )
