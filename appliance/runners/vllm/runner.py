"""Language models, served by vLLM: predictions are computed in batches and streamed token by token.

A prompt is sent unchanged if its ``prompt_template`` is empty, or if the model has no chat template, as base
models. Tested on a CPU, not on a GPU.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures, images, video_frames
from appliance.runners.adapters import LORA
from appliance.runners.base import LoadSpec
from appliance.runners.operations import CHAT
from appliance.runners.threads import interruptible
from appliance.runners.vllm import engine, errors, inputs, parts
from appliance.runners.vllm.adapters import AdapterLoader
from appliance.runners.vllm.compat import CompatApis
from appliance.runners.vllm.statistics import statistics_of

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from PIL.Image import Image
    from vllm import CompletionOutput, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

_log = logging.getLogger(__name__)

_LONG_TEXT: Final = 20_000  # characters; longer texts take milliseconds to tokenize, in a thread
_SHUTDOWN_SECONDS: Final = 3.0


class VllmRunner:
    """Runs models of kind `vllm`; the options are those of ``VllmOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._defaults = inputs.Defaults.of(spec.options)
        self._engine: AsyncLLM
        self._follower: MultiprocExecutor | None = None  # instead of the engine
        self._processes: list[BaseProcess] = []  # the engine core, or vLLM's workers of a follower
        self._compat: CompatApis | None = None
        self._tokenizer: Any
        self._chat_template: str | None = None
        self._system_in_prompt = False  # the chat template has no system role
        self._adapters: AdapterLoader
        self._context = 0  # maximum length of prompt and output together, in tokens
        self._level = 0  # of the last sleep
        self._reading_images = asyncio.Semaphore(2)  # images and videos that are read need much memory

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return inputs.interface(options)

    async def setup(self) -> None:
        """Load the model. This blocks the event loop, on which nothing else runs yet."""
        spec = self._spec
        weights = failures.existing_weights(spec)
        if parts.is_follower(spec):
            self._follower = engine.start_follower(spec, weights)
            self._watch([worker.proc for worker in self._follower.workers])
            parts.check_ports()
            return
        self._engine = engine.start(spec, weights)
        self._adapters = AdapterLoader(self._engine, weights, spec.options["max_adapter_rank"])
        self._watch([engine.core_process(self._engine)])
        self._context = self._engine.model_config.max_model_len
        self._prepare_prompts()
        await self._engine.get_supported_tasks()  # the engine caches the result, which every prediction needs
        if spec.options["tool_parser"] or spec.options["reasoning_parser"]:
            self._operations()  # a parser that does not fit fails now, not at the first request
        if spec.part is not None:
            await self._compute_first_steps()
            parts.check_ports()

    def _watch(self, processes: list[BaseProcess]) -> None:
        """Let this process exit as soon as one of ``processes`` ends."""
        self._processes = processes
        for process in processes:
            asyncio.get_running_loop().add_reader(process.sentinel, self._process_died)

    async def _compute_first_steps(self) -> None:
        """Generate a token in each of the first steps, in which torch may compile for a minute or more."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        steps = parts.FIRST_STEPS
        sampling = SamplingParams(max_tokens=steps, min_tokens=steps, temperature=0.0, ignore_eos=True)
        try:
            async for _ in self._engine.generate(tokens_input([0] * 4), sampling, "first steps"):
                pass
        except EngineDeadError:
            self._process_died()

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            folder = job.adapter or (job.input.get(LORA) if job.operation is None else None)
            adapter = None if folder is None else await self._adapters.load(folder)
            events = (
                self._predict(job, adapter) if job.operation is None else self._operations().run(job, adapter)
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        except EngineDeadError:  # raised before the reader of the process sentinel was called
            self._process_died()

    def _operations(self) -> CompatApis:
        """Return OpenAI's and Anthropic's APIs, created at the first call."""
        if self._compat is None:
            self._compat = CompatApis(self._engine, self._spec)
        return self._compat

    async def _predict(self, job: Job, adapter: LoRARequest | None) -> AsyncGenerator[Log | Output | Metric]:
        """Run a prediction of Replicate's API and yield its events."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        progress = _Progress()
        request = inputs.request(job.input, self._defaults)
        if request.images or request.video:
            async for event in self._predict_with_images(job, request, adapter):
                yield event
            return
        tokens = await self._tokens(request)
        limit = inputs.max_output_tokens(len(tokens), self._context)
        yield Metric("input_token_count", len(tokens))
        if limit < job.input.get("max_tokens", 0):
            yield Log(f"max_tokens is lowered from {request.max_tokens} to {limit} to fit the context\n")
        try:
            outputs = self._engine.generate(
                tokens_input(tokens),
                _sampling(request, limit),
                f"{job.id}-{job.attempt}",
                lora_request=adapter,
            )
            async with contextlib.aclosing(outputs):  # closing the stream early aborts the request
                async for output in outputs:
                    for event in progress.add(output.outputs[0]):
                        yield event
        except VLLMClientError as error:
            raise PredictionFailed(errors.translate(str(error))) from error
        for last in progress.end():
            yield last

    async def _predict_with_images(
        self, job: Job, request: inputs.PredictionInput, adapter: LoRARequest | None
    ) -> AsyncGenerator[Output | Metric]:
        """Run a prediction as a chat completion: vLLM knows how each model marks images in its prompt."""
        async with self._reading_images:
            urls = await interruptible(partial(_data_urls, request))
        body = inputs.chat_request(request, urls, system_in_prompt=self._system_in_prompt)
        chat = msgspec.structs.replace(job, input={**body, "model": self._spec.model}, operation=CHAT)
        events = self._operations().run(chat, adapter)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Metric):
                    yield event
                    continue
                for chunk in event.values:
                    if text := _text_of(chunk):
                        yield Output([text])

    @property
    def levels(self) -> tuple[int, ...]:
        return engine.sleep_levels(self._spec)

    async def sleep(self, level: int) -> None:
        """Free device memory. Returns None: the engine core does not report the bytes that it keeps."""
        await self._engine.sleep(level)
        self._level = level

    async def wake(self) -> None:
        await engine.wake(self._engine, self._level)

    def take_metrics(self) -> EngineMetrics | None:
        if self._follower is not None:
            return None
        idle = not self._engine.output_processor.has_unfinished_requests()
        return statistics_of(self._engine).take(idle=idle)

    async def close(self) -> None:
        for process in self._processes:
            asyncio.get_running_loop().remove_reader(process.sentinel)
        if "," not in self._spec.device:
            for process in self._processes:
                process.kill()  # frees everything at once; a shutdown would take a second
        elif self._follower is not None:  # a shutdown, because vLLM's workers must release shared memory
            self._follower.shutdown()
        else:  # for the same reason
            self._engine.shutdown(timeout=_SHUTDOWN_SECONDS)

    def _prepare_prompts(self) -> None:
        """Choose the chat template, and check whether it has a system role.

        Raises:
            LoadFailed: the chat template cannot be used.
        """
        tokenizer: Any = self._engine.get_tokenizer()
        if tokenizer is None:
            raise LoadFailed(f"model {self._spec.model}: {self._spec.weights} has no tokenizer.json; add it")
        self._tokenizer = tokenizer
        self._chat_template = self._spec.options["chat_template"] or getattr(tokenizer, "chat_template", None)
        if self._chat_template is None:
            _log.info(
                "%s has no chat template: prompts are sent unchanged, and system prompts are ignored",
                self._spec.model,
            )
            return
        try:
            self._conversation("Hello", "Be brief.")
        except Exception as with_system:  # noqa: BLE001  # templates raise errors of any class
            try:
                self._conversation("Hello", "")
            except Exception as error:  # as above
                raise LoadFailed(
                    f"the chat template of {self._spec.model} cannot be used: {error}; correct it, or set "
                    "chat_template in its options"
                ) from error
            self._system_in_prompt = True
            _log.info(
                "the chat template of %s has no system role (%s): system prompts are put before the prompt",
                self._spec.model,
                with_system,
            )

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

    async def _tokens(self, request: inputs.PredictionInput) -> list[int]:
        """Return the tokens of the prompt.

        Raises:
            PredictionFailed: E1003 or E1004, the prompt template is wrong; or there are no tokens.
        """
        if len(request.prompt) + len(request.system_prompt) < _LONG_TEXT:
            tokens = self._encode(request)
        else:
            tokens = await asyncio.to_thread(self._encode, request)
        if not tokens:
            raise PredictionFailed("the prompt is empty; set input.prompt")
        return tokens

    def _encode(self, request: inputs.PredictionInput) -> list[int]:
        template = request.prompt_template
        tokenizer = self._tokenizer
        if template is None and self._chat_template is not None:
            text, special = self._conversation(request.prompt, request.system_prompt), False
        else:
            text = inputs.fill_template(template or "", request.prompt, request.system_prompt)
            begin = getattr(tokenizer, "bos_token", None)
            special = not (begin and text.startswith(begin))  # the template may begin with it
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def _process_died(self) -> NoReturn:
        # The replica reports the end of the log as the reason. While a prediction runs, ``sys.stderr`` is its
        # log, which is lost.
        part, what = self._spec.part, "engine core" if self._follower is None else "worker"
        text = f"vLLM's {what} for {self._spec.model} has ended unexpectedly; the worker process exits"
        if part is not None:
            text += (
                f". This is part {part.index + 1} of {part.count}, on {part.address}; if no error is above, "
                f"another machine did not answer, or a step took longer than {parts.step_limit()} s"
            )
        os.write(2, f"{text}\n".encode())
        os._exit(1)


def _data_urls(request: inputs.PredictionInput, cancelled: threading.Event) -> list[str]:
    """Return the images, and then the frames of the video, as ``data:`` URLs."""
    urls = [_data_url(images.read(Path(path), "image")) for path in request.images]
    if request.video:
        frames = video_frames.read(Path(request.video), request.video_frames, "video", cancelled)
        urls += [_data_url(frame) for frame in frames]
    return urls


def _data_url(image: Image) -> str:
    """Return an image as a ``data:`` URL of a PNG image."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _text_of(chunk: dict[str, Any]) -> str:
    """Return the reasoning and the text in a chunk of a chat completion."""
    deltas = [choice["delta"] for choice in chunk.get("choices", ())]
    return "".join((delta.get("reasoning") or "") + (delta.get("content") or "") for delta in deltas)


class _Progress:
    """Converts vLLM's outputs for one prediction to text, metrics and log lines."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._tokens = 0
        self._reason: str | None = None

    def add(self, new: CompletionOutput) -> Iterator[Metric | Output]:
        """Yield the text in ``new``, which holds only text and tokens since the previous output."""
        if not self._tokens and new.token_ids:
            yield Metric("time_to_first_token", round(time.perf_counter() - self._started, 6))
        self._tokens += len(new.token_ids)
        self._reason = new.finish_reason
        if new.text:
            yield Output([new.text])

    def end(self) -> Iterator[Log | Metric]:
        """Yield the metrics and the last log line.

        Raises:
            PredictionFailed: the engine aborted the prediction.
        """
        if self._reason == "error":
            raise PredictionFailed("vLLM aborted this prediction; the log of the model has the reason")
        seconds = time.perf_counter() - self._started
        speed = self._tokens / seconds
        yield Metric("output_token_count", self._tokens)
        yield Metric("tokens_per_second", round(speed, 6))
        yield Log(
            f"Generated {self._tokens} tokens in {seconds:.3f} seconds, {speed:.1f} tokens per second\n"
        )


def _sampling(request: inputs.PredictionInput, limit: int) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = request.temperature == 0 or request.top_p == 0
    max_tokens = min(request.max_tokens, limit)
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
        output_kind=RequestOutputKind.DELTA,  # outputs that are not yet read are merged
    )
