"""Language models on vLLM's asynchronous engine.

The host is forked from a zygote that has imported vLLM, and the engine's own process is forked from the host,
so nothing is imported twice. Written against vLLM 0.32, the same version on CPU and GPU. What has not run on
a GPU: everything here that asks for ``cuda``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from appliance.errors import LoadFailed, PredictionFailed
from appliance.prediction import Job, Log, Metric, Output
from appliance.runners import prompting
from appliance.runners.base import Interface, LoadSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_log = logging.getLogger(__name__)

WATCH: Final = 1.0  # seconds between looks at the engine's health
_DEAD: Final = 70  # exit code of a host whose engine died: EX_SOFTWARE
_SEEDS: Final = 2**63  # torch takes no larger ones


class VllmRunner:
    """One AsyncLLM; options are those of ``config.VllmOptions``."""

    kind: ClassVar[str] = "vllm"

    def __init__(self, spec: LoadSpec) -> None:
        """See ``Runner``."""
        self._spec = spec
        self._options = spec.options
        self._on_gpu = spec.device.startswith("cuda")
        self._engine: AsyncLLM
        self._tokenizer: Any
        self._chat: bool
        self._context: int
        self._watch: asyncio.Task[None] | None = None

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a language model with these options."""
        return prompting.interface(options)

    async def setup(self) -> None:
        """See ``Runner``. The loop stands still while the engine loads; there is nothing else for it to do."""
        if self._spec.weights is None or not Path(self._spec.weights, "config.json").is_file():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        self._prepare()
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415 - heavy: only inside a host

        started = time.monotonic()
        try:
            config = self._config()
            # vLLM sets this to spawn while it makes the config for a CPU. Nothing has started a thread pool or
            # touched CUDA in this process, so its fork is safe, and saves the engine importing vLLM again.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
            self._engine = AsyncLLM.from_vllm_config(config)
        except Exception as error:  # vLLM raises whatever its many parts raise
            raise LoadFailed(f"model {self._spec.model}: {_reason(error)}") from error
        self._context = int(config.model_config.max_model_len)
        self._tokenizer = self._engine.get_tokenizer()
        self._chat = bool(self._options["chat_template"] or getattr(self._tokenizer, "chat_template", None))
        self._watch = asyncio.get_running_loop().create_task(self._end_with_the_engine())
        _log.info("vLLM was ready %.1f s after its configuration began", time.monotonic() - started)

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """See ``Runner``."""
        from vllm.inputs.engine import tokens_input  # noqa: PLC0415 - heavy: only inside a host

        began = time.monotonic()
        asked = job.input
        tokens = self._tokens(asked)
        sampling = self._sampling(asked, len(tokens))
        first: float | None = None
        count = 0
        stream = self._engine.generate(
            tokens_input(tokens), sampling, f"{job.id}-{job.attempt}"
        )
        # Closing the generator is what takes the request out of the engine, on a cancel too.
        async with contextlib.aclosing(stream) as parts:
            try:
                async for part in parts:
                    completion = part.outputs[0]
                    count += len(completion.token_ids)
                    if first is None and count:
                        first = time.monotonic() - began
                    if completion.text:
                        yield Output([completion.text])
            except ValueError as error:  # a request that the engine refuses
                raise PredictionFailed(str(error)) from error
        seconds = time.monotonic() - began
        for name, value in (
            ("input_token_count", len(tokens)),
            ("output_token_count", count),
            ("time_to_first_token", round(first if first is not None else seconds, 6)),
            ("tokens_per_second", round(count / seconds, 3)),
        ):
            yield Metric(name, value)
        yield Log(f"Generated {count} tokens from a prompt of {len(tokens)} in {seconds:.2f} s\n")

    async def close(self) -> None:
        """See ``Runner``."""
        if self._watch is not None:
            self._watch.cancel()
            self._engine.shutdown()

    # -- the engine ----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Set what vLLM reads from the environment and from torch when it starts."""
        os.environ.update(
            {
                "VLLM_CACHE_ROOT": self._spec.cache,
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
                # Left to itself every engine binds its threads to the same cores (engine-facts B3).
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                # One process for scheduler and model: AsyncLLM has its own process for both in any case.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            }
        )
        import torch  # noqa: PLC0415 - heavy: only inside a host

        # libgomp has read OMP_NUM_THREADS in the zygote; the engine's process inherits what is set here.
        torch.set_num_threads(self._spec.threads)

    def _config(self) -> VllmConfig:
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 - heavy: only inside a host

        options = self._options
        eager = options["enforce_eager"]
        arguments: dict[str, Any] = {
            "model": self._spec.weights,
            "served_model_name": [self._spec.model],
            "dtype": self._dtype(),
            "max_model_len": options["max_model_len"],
            "max_num_seqs": options["max_num_seqs"],
            # Bytes that are said need not be found out by a profiling run.
            "kv_cache_memory_bytes": options["kv_cache"],
            "enforce_eager": (not self._on_gpu) if eager is None else eager,
            "trust_remote_code": options["trust_remote_code"],
            "generation_config": "vllm",  # every sampling parameter comes from the interface
            "disable_log_stats": True,
            "seed": secrets.randbelow(2**31),  # what gives no seed is not the same after every load
        }
        if self._on_gpu:
            devices = self._spec.device.split(",")
            arguments["tensor_parallel_size"] = len(devices)
            arguments["gpu_memory_utilization"] = self._share(devices[0])
        else:
            arguments["distributed_executor_backend"] = "uni"
        args: AsyncEngineArgs = AsyncEngineArgs(**arguments)
        return args.create_engine_config()

    def _dtype(self) -> str:
        """The number format; on a CPU float32, unless it multiplies bfloat16 in hardware."""
        if self._options["dtype"] != "auto" or self._on_gpu:
            return str(self._options["dtype"])
        import torch  # noqa: PLC0415 - heavy: only inside a host

        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "auto" if fast else "float32"

    def _share(self, device: str) -> float:
        """The reserved bytes as vLLM wants them: a fraction of the device's memory. Asked of NVML, because
        asking CUDA would make this process one that cannot be forked."""
        import pynvml  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - on GPU machines only

        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("cuda:")))
            total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        finally:
            pynvml.nvmlShutdown()
        return min(1.0, self._spec.memory / total)

    async def _end_with_the_engine(self) -> None:
        """An engine that died takes every prediction with it: end the host, so that it is replaced."""
        while not self._engine.errored:
            await asyncio.sleep(WATCH)
        _log.critical("vLLM's engine died: %s", self._engine.dead_error)
        logging.shutdown()
        os._exit(_DEAD)

    # -- one prediction ------------------------------------------------------------------------------------

    def _tokens(self, asked: Mapping[str, Any]) -> list[int]:
        template, prompt, system = asked.get("prompt_template"), asked["prompt"], asked["system_prompt"]
        if template is not None:
            return list(self._tokenizer.encode(prompting.fill_template(template, prompt, system)))
        if not self._chat:  # a base model, which continues what it reads
            return list(self._tokenizer.encode(prompt))
        try:
            text = self._tokenizer.apply_chat_template(
                prompting.messages(prompt, system),
                chat_template=self._options["chat_template"],
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # templates are Jinja programs and raise what they like
            raise PredictionFailed(f"E1004 PromptTemplateError: the model's chat template: {error}") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _sampling(self, asked: Mapping[str, Any], prompt_tokens: int) -> SamplingParams:
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415 - heavy

        longest, shortest = prompting.lengths(asked, prompt_tokens, self._context)
        seed = asked.get("seed")
        return SamplingParams(
            temperature=asked["temperature"],
            top_p=max(asked["top_p"], 1e-6),  # vLLM refuses 0, which leaves only the likeliest token
            top_k=asked["top_k"],
            presence_penalty=asked["presence_penalty"],
            frequency_penalty=asked["frequency_penalty"],
            max_tokens=longest,
            min_tokens=shortest,
            stop=prompting.stops(asked.get("stop_sequences")),
            seed=None if seed is None else seed % _SEEDS,
            output_kind=RequestOutputKind.DELTA,
        )


def _reason(error: BaseException) -> str:
    """The most telling line of an error of vLLM's, which may hold whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
