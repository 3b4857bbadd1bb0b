"""vLLM's engine for one loaded model: how it is started, and what it says when it cannot be.

All that depends on vLLM's inner workings is here, written for version 0.32. The engine core, which computes,
is a process of its own, so that computing never blocks the host's event loop; it is forked, so that nothing
is imported a second time. The GPU settings have not run on a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from appliance.domain.errors import LoadFailed
from appliance.runners import images
from appliance.runners.vllm import errors
from appliance.runners.vllm.grammars import check_grammars, use_own_backends

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from appliance.runners.base import LoadSpec

_CAUSE_LENGTH: Final = 600  # characters of a foreign error's text that are shown

#: Words in vLLM's errors -> what to change in models.yaml.
_HINTS: Final = (
    ("KV cache", "give the model a larger kv_cache or a smaller max_model_len in its options"),
    ("trust_remote_code", "set trust_remote_code in its options, if you trust the source"),
    ("torchvision", "models that see need it, and only the installation for GPUs has it"),
    ("Free memory on device", "free the device of other programs, or lower the model's memory"),
    ("out of memory", "raise the model's memory, or lower its kv_cache or max_num_seqs"),
)


def start(spec: LoadSpec, weights: Path) -> AsyncLLM:
    """Load the model. Blocks for as long as that takes; must be called where a loop runs.

    Raises:
        LoadFailed: the weights or the options do not fit vLLM or the device.
    """
    _set_environment(spec)
    import torch

    torch.set_num_threads(spec.threads)  # the forked engine core inherits it
    with _told_why() as reason:
        try:
            return _start(spec, weights)
        except LoadFailed:
            raise
        except Exception as error:  # vLLM, transformers and pydantic share no base class
            raise LoadFailed(
                f"vLLM cannot load {spec.model} from {weights}: {reason() or _describe(error)}"
            ) from error


def levels(spec: LoadSpec) -> tuple[int, ...]:
    """Of sleep that the engine is able to.

    vLLM's backend for CPUs says that it sleeps, and gives nothing back. Dropped weights are read again, those
    of adapters are not.
    """
    if not spec.sleeps or spec.device == "cpu":
        return ()
    return (1,) if spec.options["max_adapters"] else (1, 2)


async def wake(engine: AsyncLLM, level: int) -> None:
    """Wake it from its sleep of that level; the order is vLLM's own.

    Raises:
        LoadFailed: it says that it is not awake.
    """
    if level == 1:
        awake = await engine.wake_up()
    else:
        await engine.wake_up(tags=["weights"])
        await engine.collective_rpc("reload_weights")  # without it, it would answer with noise
        awake = await engine.wake_up(tags=["kv_cache"])
    if not awake:
        raise LoadFailed("vLLM says that it is not awake")


def read_deep_greys() -> None:
    """Patch vLLM to scale grey images of 16 or 32 bits to 8 bits; vLLM makes them white or black."""
    from vllm.multimodal.media import image

    module: Any = image
    if hasattr(module, "appliance_normalize"):
        return
    module.appliance_normalize = module.normalize_image

    def normalize_image(picture: Any) -> Any:
        return images.upright(picture) if images.is_deep(picture) else module.appliance_normalize(picture)

    module.normalize_image = normalize_image


def core_process(engine: AsyncLLM) -> BaseProcess:
    """The process that computes."""
    client: Any = engine.engine_core
    process: BaseProcess = client.resources.engine_manager.processes[0]
    return process


def _start(spec: LoadSpec, weights: Path) -> AsyncLLM:
    from vllm.v1.engine.async_llm import AsyncLLM

    if spec.device == "cpu":
        _import_model(weights)
        _repair_compiled_models()
    config = _arguments(spec, weights).create_engine_config()
    # For a CPU, making a config chooses spawn, which would import everything again. vLLM goes back to spawn
    # by itself where a fork is not possible.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    use_own_backends()
    read_deep_greys()
    engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    check_grammars(engine)
    return engine


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
        "kv_cache_memory_bytes": options["kv_cache"],
        "enforce_eager": eager,
        "tensor_parallel_size": devices,
        "distributed_executor_backend": "uni" if devices == 1 else "mp",
        "trust_remote_code": options["trust_remote_code"],
        "generation_config": "vllm",  # every sampling parameter comes from the interface
        "reasoning_parser": options["reasoning_parser"] or "",
        # A name that no machine can have: the gateway fetches what requests point to, under its own rules.
        "allowed_media_domains": ["nothing.invalid"],
        "seed": secrets.randbits(31),  # else every start would give the same "random" answers
        "disable_log_stats": True,
        "enable_log_requests": False,
        "shutdown_timeout": 0,
    }
    if options["max_adapters"]:
        arguments |= {
            "enable_lora": True,
            "max_loras": options["max_adapters"],
            "max_lora_rank": options["max_adapter_rank"],
        }
    if on_cpu and eager:
        arguments["ir_op_priority"] = _normalise_in_one_step()
    if not on_cpu:
        arguments["enable_sleep_mode"] = spec.sleeps
        arguments["gpu_memory_utilization"] = _share(spec.memory)
    return AsyncEngineArgs(**arguments)


def _dtype(asked: str, *, on_cpu: bool) -> str:
    """The number format to compute in. Without instructions for it, bfloat16 is slower than float32."""
    if asked != "auto" or not on_cpu:
        return asked
    import torch

    probe: Any = torch.cpu
    # vLLM itself asks these two; torch has no public ones
    has_bfloat16 = probe._is_avx512_bf16_supported() or probe._is_amx_tile_supported()  # noqa: SLF001 - see above
    return "bfloat16" if has_bfloat16 else "float32"


def _share(memory: int) -> float:
    """``memory`` bytes as a fraction of a device's whole memory. vLLM refuses to start if less is free."""
    from vllm.platforms import current_platform

    total: int = current_platform.get_device_total_memory()  # asked of NVML: CUDA would forbid the fork
    return min(memory / total, 1.0)


def _set_environment(spec: LoadSpec) -> None:
    """The variables that vLLM and what it uses read while they start."""
    cache = Path(spec.cache)
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_CACHE_ROOT=str(cache / "vllm"),
        TORCHINDUCTOR_CACHE_DIR=str(cache / "inductor"),
        TRITON_CACHE_DIR=str(cache / "triton"),
        # Not bound to cores: vLLM would bind every engine on this machine to the same ones.
        VLLM_CPU_OMP_THREADS_BIND="nobind",
    )
    if spec.device == "cpu":
        # Keeps the worker inside the engine core on a CPU, instead of in a third process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # it read its variable when the zygote imported it


def _import_model(weights: Path) -> None:
    """Make the model's class known to vLLM by importing it here.

    vLLM would start a Python process that imports everything, only to look at the class: to keep CUDA out of
    this process, which does not matter on a CPU.
    """
    from vllm import ModelRegistry

    for architecture in architectures(weights):
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())


def architectures(weights: Path) -> list[str]:
    """The architectures that a folder of weights names.

    Raises:
        LoadFailed: it is no transformers folder.
    """
    file = weights / "config.json"
    try:
        names = json.loads(file.read_bytes())["architectures"]
    except FileNotFoundError as error:
        raise LoadFailed(
            f"{weights} holds no config.json; the source of a vllm model must be a transformers folder, or a "
            "GGUF file"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"{file} cannot be used: {_describe(error)}") from error
    return [str(name) for name in names or []]


def _normalise_in_one_step() -> dict[str, list[str]]:
    """Have a CPU compute RMS norms with the kernels that vLLM brings for it, but uses on GPUs only.

    Left alone it takes eight operations for each where nothing is compiled. Returns what vLLM is to prefer.
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
    """Let vLLM find on a CPU the compiled models that it has kept from earlier starts.

    It saves them, but fails to load them, because it asks the function in them to finish loading, which only
    functions for a GPU know how to do; then it compiles again, for half a minute and more.
    """
    import torch

    compiler: Any = torch.compiler
    load = compiler.load_compiled_function
    if getattr(load, "repaired", False):
        return

    def load_compiled_function(*arguments: Any, **keywords: Any) -> Any:
        loaded = load(*arguments, **keywords)
        compiled = loaded._artifacts.compiled_fn  # noqa: SLF001 - what vLLM itself looks at
        if not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = lambda _config: None
        return loaded

    load_compiled_function.repaired = True  # type: ignore[attr-defined]  # a mark on a function
    compiler.load_compiled_function = load_compiled_function


@contextlib.contextmanager
def _told_why() -> Iterator[Callable[[], str]]:
    """Hear from a forked engine core why it could not start; vLLM itself only says that it could not.

    Yield a function that returns why the core ended; "" if it was killed, or spawned instead of forked.
    """
    from vllm.v1.engine.core import EngineCoreProc

    core: Any = EngineCoreProc
    original = core.__init__
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def initialise(self: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            original(self, *arguments, **keywords)
        except Exception as error:
            os.write(writing, _describe(error).encode())
            raise

    def reason() -> str:
        try:
            return os.read(reading, 4 * _CAUSE_LENGTH).decode()
        except BlockingIOError:
            return ""

    core.__init__ = initialise
    try:
        yield reason
    finally:
        core.__init__ = original
        os.close(reading)
        os.close(writing)


def _said(error: Exception) -> str:
    """The text of an error; of a pydantic error only the messages, without the checked values."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(each["msg"].removeprefix("Value error, ") for each in found)


def _describe(error: Exception) -> str:
    """Return a library's error on one short line, with advice where there is any."""
    text = errors.translate(" ".join(_said(error).split())) or type(error).__name__
    if len(text) > _CAUSE_LENGTH:
        text = text[:_CAUSE_LENGTH] + " ..."
    hints = [hint for words, hint in _HINTS if words in text]
    return "; ".join([text.rstrip("."), *hints])
