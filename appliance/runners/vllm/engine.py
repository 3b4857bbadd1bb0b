"""Starts vLLM's engine for one loaded model, and explains why it cannot start.

Everything that depends on vLLM's internals is in this module, in ``parts.py``, in ``grammars.py`` and in
``statistics.py``, written for vLLM 0.32.
vLLM computes in a process of its own, the engine core, so that computing never blocks the event loop of the
worker process. The engine core is a fork, which need not import everything again. Not tested on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from appliance.domain.errors import LoadFailed
from appliance.runners import failures, images
from appliance.runners.vllm import adapters, errors, kv_cache, parts, tokenizer_copies
from appliance.runners.vllm.grammars import check_grammars, use_own_backends
from appliance.runners.vllm.statistics import stat_logger, throttle_scheduler_stats

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    from appliance.runners.base import LoadSpec

_Loaded = TypeVar("_Loaded")

#: Phrase in vLLM's errors -> advice.
_HINTS: Final = (
    ("KV cache", "give the model a larger kv_cache or a smaller max_model_len in its options"),
    ("trust_remote_code", "set trust_remote_code in its options, if you trust the source"),
    ("torchvision", "vision models need torchvision, which only the installation for GPUs has"),
    (
        "divisible by tensor parallel size",
        "change the number of devices (gpu), or set across_machines to pipeline if machines is over 1",
    ),
    ("Free memory on device", "stop other programs on the device, or lower the model's memory"),
    ("out of memory", "raise the model's memory, or lower its kv_cache or max_num_seqs"),
)


def start(spec: LoadSpec, weights: Path) -> AsyncLLM:
    """Load the model. The caller's event loop must run and is blocked.

    Raises:
        LoadFailed: the weights or the options do not fit vLLM or the device.
    """
    return _load(_start, spec, weights)


def start_follower(spec: LoadSpec, weights: Path) -> MultiprocExecutor:
    """Load a part of the model that only computes for the engine on another machine. Blocks as ``start``.

    Returns when the parts on all machines are loaded. The processes with the part end with the result.

    Raises:
        LoadFailed: as ``start``.
    """
    return _load(_start_follower, spec, weights)


def _load(begin: Callable[[LoadSpec, Path], _Loaded], spec: LoadSpec, weights: Path) -> _Loaded:
    _set_environment(spec)
    import torch

    torch.set_num_threads(spec.threads)  # the forked engine core inherits this setting
    if spec.device == "cpu":
        _permit_amx()
    with _core_error() as core_error:
        try:
            return begin(spec, weights)
        except LoadFailed:
            raise
        except Exception as error:  # vLLM, transformers and pydantic share no base class
            reason = core_error() or _describe(error)
            raise LoadFailed(f"vLLM cannot load {spec.model} from {weights}: {reason}") from error


def sleep_levels(spec: LoadSpec) -> tuple[int, ...]:
    """Return the supported sleep levels: 1 keeps the weights in main memory, 2 drops them.

    Empty on a CPU, where vLLM accepts sleep requests but frees nothing. With adapters only level 1, because
    vLLM would not reload the weights of adapters.
    """
    if not spec.sleeps or spec.device == "cpu":
        return ()
    return (1,) if spec.options["max_adapters"] else (1, 2)


async def wake(engine: AsyncLLM, level: int) -> None:
    """Wake the engine from sleep ``level``, with the calls that vLLM's documentation prescribes.

    Raises:
        LoadFailed: the engine did not wake up.
    """
    if level == 1:
        awake = await engine.wake_up()
    else:
        await engine.wake_up(tags=["weights"])
        await engine.collective_rpc("reload_weights")  # without this call the output would be noise
        awake = await engine.wake_up(tags=["kv_cache"])
    if not awake:
        raise LoadFailed(f"vLLM did not wake up from sleep level {level}")


def patch_grey_images() -> None:
    """Make vLLM scale grey images of 16 or 32 bits to 8 bits; unpatched, they become white or black."""
    from vllm.multimodal.media import image

    module: Any = image
    if hasattr(module, "appliance_normalize"):
        return
    module.appliance_normalize = module.normalize_image

    def normalize_image(image: Any) -> Any:
        return images.upright(image) if images.is_deep(image) else module.appliance_normalize(image)

    module.normalize_image = normalize_image


def core_process(engine: AsyncLLM) -> BaseProcess:
    client: Any = engine.engine_core
    process: BaseProcess = client.resources.engine_manager.processes[0]
    return process


def _permit_amx() -> None:
    """Ask Linux for the tile registers of Intel's AMX. The forked engine core inherits the permission.

    vLLM's attention uses them without asking, which ends the process with an illegal instruction unless
    another library has asked before.
    """
    import torch

    if torch.cpu._is_amx_tile_supported():  # noqa: SLF001 - nothing public does it
        torch.cpu._init_amx()  # noqa: SLF001


def _start(spec: LoadSpec, weights: Path) -> AsyncLLM:
    from vllm.envs import enable_envs_cache
    from vllm.v1.engine.async_llm import AsyncLLM

    config = _config(spec, weights)
    use_own_backends()
    throttle_scheduler_stats()
    patch_grey_images()
    with tokenizer_copies.made_while_core_starts():
        # With ``disable_log_stats`` the engine has only this stat logger, none that writes log lines.
        engine = AsyncLLM.from_vllm_config(config, stat_loggers=[stat_logger()], disable_log_stats=True)
    enable_envs_cache()  # vLLM's own server reads environment variables again for each token
    check_grammars(engine)
    return engine


def _start_follower(spec: LoadSpec, weights: Path) -> MultiprocExecutor:
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    return MultiprocExecutor(_config(spec, weights), monitor_workers=False)


def _config(spec: LoadSpec, weights: Path) -> VllmConfig:
    if spec.device == "cpu":
        _import_model(weights)
        _repair_compiled_models()
    config = _arguments(spec, weights).create_engine_config(headless=parts.is_follower(spec))
    # On a CPU, create_engine_config chooses spawn, which would import everything again. Where a fork is not
    # possible, vLLM falls back to spawn.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    if spec.part is not None:
        parts.prepare(spec.part)
    return config


def _arguments(spec: LoadSpec, weights: Path) -> AsyncEngineArgs:
    from vllm.engine.arg_utils import AsyncEngineArgs

    options = spec.options
    on_cpu = spec.device == "cpu"
    devices = 1 if on_cpu else len(spec.device.split(","))
    eager = on_cpu if options["enforce_eager"] is None else options["enforce_eager"]
    arguments: dict[str, Any] = {
        "model": str(weights),
        "served_model_name": [spec.model],
        "dtype": _dtype(options["dtype"], on_cpu=on_cpu),
        "max_model_len": options["max_model_len"],
        "max_num_seqs": options["max_num_seqs"],
        "enforce_eager": eager,
        "quantization": options.get("quantization"),
        "trust_remote_code": options["trust_remote_code"],
        "generation_config": "vllm",  # every sampling parameter comes from the interface
        "reasoning_parser": options["reasoning_parser"] or "",
        # No machine can have this name: only the gateway fetches URLs in requests, under its own rules.
        "allowed_media_domains": ["nothing.invalid"],
        "seed": secrets.randbits(31),  # otherwise every start would generate the same "random" text
        "disable_log_stats": True,
        "enable_log_requests": False,
        "shutdown_timeout": 0,
        **parts.engine_arguments(spec, devices),
        **kv_cache.engine_arguments(options),
        **adapters.engine_arguments(options),
    }
    if on_cpu and eager:
        arguments["ir_op_priority"] = _register_norm_kernels()
    if not on_cpu:
        arguments["enable_sleep_mode"] = spec.sleeps
        arguments["gpu_memory_utilization"] = _memory_fraction(spec.memory)
    return AsyncEngineArgs(**arguments | _converted(options.get("engine", {})))


def _converted(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option ``engine`` with the types that vLLM's command line would make of the values.

    Raises:
        ValidationError: a mapping does not fit vLLM's class for this argument.
    """
    from pydantic import TypeAdapter
    from vllm.engine import arg_utils

    hints = {field.name: field.type for field in dataclasses.fields(arg_utils.AsyncEngineArgs)}
    converted = dict(engine)
    for name, value in engine.items():
        members = arg_utils.get_type_hints(hints[name])
        config: Any = next((each for each in members if dataclasses.is_dataclass(each)), None)
        if isinstance(value, dict) and config is not None:
            converted[name] = TypeAdapter(config).validate_python(value)
        elif isinstance(value, list) and arg_utils.contains_type(members, set):
            converted[name] = set(value)
    return converted


def _dtype(dtype: str, *, on_cpu: bool) -> str:
    """Return the number format to compute in. auto on a CPU: bfloat16 if the processor supports it."""
    if dtype != "auto" or not on_cpu:
        return dtype
    import torch

    cpu: Any = torch.cpu
    # vLLM calls these two as well; torch has no public functions for it
    has_bfloat16 = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()  # noqa: SLF001 - see above
    return "bfloat16" if has_bfloat16 else "float32"


def _memory_fraction(memory: int) -> float:
    """Return ``memory`` bytes as a fraction of the device's memory. vLLM starts only if as much is free."""
    from vllm.platforms import current_platform

    # vLLM asks NVML for it. If CUDA were initialized in this process, it could not fork the engine core.
    total: int = current_platform.get_device_total_memory()
    return min(memory / total, 1.0)


def _set_environment(spec: LoadSpec) -> None:
    """Set the environment variables that vLLM and its dependencies read at their start."""
    cache = Path(spec.cache)
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_CACHE_ROOT=str(cache / "vllm"),
        TORCHINDUCTOR_CACHE_DIR=str(cache / "inductor"),
        TRITON_CACHE_DIR=str(cache / "triton"),
        # Without this, vLLM would bind the threads of every engine on this machine to the same cores.
        VLLM_CPU_OMP_THREADS_BIND="nobind",
    )
    if spec.device == "cpu":
        # Run vLLM's worker in the engine core instead of in a third process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if spec.part is not None:
        parts.set_environment(spec.part, on_cpus=spec.device == "cpu")
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the zygote imported it before the variable was set


def _import_model(weights: Path) -> None:
    """Import the model's class and register it with vLLM.

    Otherwise vLLM inspects the class in a new Python process, to keep CUDA out of this process, and there
    imports everything again.
    """
    from vllm import ModelRegistry

    for architecture in _architectures(weights):
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())


def _architectures(weights: Path) -> list[str]:
    """Return the architectures that the config of the weights names.

    Raises:
        LoadFailed: ``weights`` is not a transformers folder.
    """
    file = weights / "config.json"
    try:
        names = json.loads(file.read_bytes())["architectures"]
    except FileNotFoundError as error:
        raise LoadFailed(
            f"{weights} has no config.json; the source of a vllm model must be a transformers folder or a "
            "GGUF file"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"{file} cannot be read: {_describe(error)}") from error
    return [str(name) for name in names or []]


def _register_norm_kernels() -> dict[str, list[str]]:
    """Register vLLM's own RMS norm kernels for a CPU; return the operators' priorities for its config.

    vLLM uses these kernels on GPUs only. On a CPU, without compilation, it would run eight operations for
    each norm.
    """
    import torch
    from vllm import ir
    from vllm.platforms import current_platform

    current_platform.import_ir_kernels()
    kernels = torch.ops._C  # noqa: SLF001 - the name under which vLLM registers them

    def rms_norm(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> Any:
        output = torch.empty_like(x)
        kernels.rms_norm(output, x, weight, epsilon)
        return output

    def rms_norm_fits(x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool:
        plain = variance_size is None and weight is not None and weight.dtype == x.dtype
        return bool(plain and x.is_contiguous())

    def fused_add_rms_norm(
        x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: int | None = None
    ) -> Any:
        kernels.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual

    def fused_add_rms_norm_fits(
        x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: int | None = None
    ) -> bool:
        return bool(x_residual.is_contiguous() and rms_norm_fits(x, weight, epsilon, variance_size))

    name = "appliance_cpu"
    operators: tuple[tuple[Any, Any, Any, dict[str, Any]], ...] = (
        (ir.ops.rms_norm, rms_norm, rms_norm_fits, {}),
        (ir.ops.fused_add_rms_norm, fused_add_rms_norm, fused_add_rms_norm_fits, {"inplace": True}),
    )
    for operator, function, fits, more in operators:
        function.__annotations__ = dict(operator.impls["native"].impl_fn.__annotations__)
        operator.register_impl(name, supports_args=fits, **more)(function)
    return {operator.name: [name] for operator, *_ in operators}


def _repair_compiled_models() -> None:
    """Make vLLM reuse the compiled models of earlier starts on a CPU.

    vLLM caches them but cannot load them: it calls ``finalize_loading``, which only functions compiled for a
    GPU have. Then it compiles again, which takes half a minute or more.
    """
    import torch

    compiler: Any = torch.compiler
    load = compiler.load_compiled_function
    if getattr(load, "repaired", False):
        return

    def load_compiled_function(*arguments: Any, **keywords: Any) -> Any:
        loaded = load(*arguments, **keywords)
        compiled = loaded._artifacts.compiled_fn  # noqa: SLF001 - as vLLM does
        if not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = lambda _config: None
        return loaded

    load_compiled_function.repaired = True  # type: ignore[attr-defined]  # a mark on a function
    compiler.load_compiled_function = load_compiled_function


@contextlib.contextmanager
def _core_error() -> Iterator[Callable[[], str]]:
    """Yield a function that returns the first error of a forked engine core or of one of vLLM's workers.

    vLLM itself only reports that a process ended. The function returns "" if the process was killed, or
    spawned instead of forked.
    """
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor.multiproc_executor import WorkerProc

    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def error_text() -> str:
        try:
            return os.read(reading, 4 * failures.MAX_LENGTH).decode(errors="replace").partition("\0")[0]
        except BlockingIOError:
            return ""

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        stack.callback(os.close, writing)
        for process in (EngineCoreProc, WorkerProc):
            stack.enter_context(_reporting_errors(process, writing))
        yield error_text


@contextlib.contextmanager
def _reporting_errors(process: Any, writing: int) -> Iterator[None]:
    """Write the errors of ``process.__init__`` to a pipe, each with a null character at its end."""
    original = process.__init__

    def initialise(self: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            original(self, *arguments, **keywords)
        except Exception as error:
            os.write(writing, f"{_describe(error)}\0".encode())
            raise

    process.__init__ = initialise
    try:
        yield
    finally:
        process.__init__ = original


def _describe(error: Exception) -> str:
    """Return a library's error on one short line, with advice."""
    text = str(error)
    if isinstance(error, ValidationError):  # its text would repeat the values of the options
        found = error.errors(include_url=False, include_input=False, include_context=False)
        text = "; ".join(each["msg"].removeprefix("Value error, ") for each in found)
    return failures.summary(errors.translate(" ".join(text.split())) or type(error).__name__, _HINTS)
