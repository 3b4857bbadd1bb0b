"""Opens ONNX files with onnxruntime, which only worker processes import: its threads do not survive a fork.

Not tested on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import LoadFailed
from appliance.runners.base import LoadSpec

_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
#: onnxruntime's names of tensor types -> NumPy's dtypes
DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def open_session(file: Path, spec: LoadSpec, *, on_cpu: bool = True) -> Any:
    """Return an onnxruntime session of ``file``, on the GPU of ``spec`` unless it has none or ``on_cpu``.

    Raises:
        LoadFailed: the file cannot be loaded, or onnxruntime cannot compute on the GPU.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    on_gpu = spec.device != "cpu" and not on_cpu
    if on_gpu and _CUDA not in onnxruntime.get_available_providers():
        raise LoadFailed(
            f"model {spec.model}: the installed onnxruntime computes only on the CPU; set options.device to "
            "cpu, or install the package onnxruntime-gpu in place of onnxruntime"
        )
    if on_gpu:
        onnxruntime.preload_dlls()  # the CUDA libraries that were installed for torch
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[_CUDA, _CPU] if on_gpu else [_CPU]
        )
    except Exception as error:  # onnxruntime's errors share no base class
        raise LoadFailed(f"model {spec.model}: {file} cannot be loaded: {error}") from error
    if on_gpu and _CUDA not in session.get_providers():  # onnxruntime only logs why
        raise LoadFailed(
            f"model {spec.model}: onnxruntime could not start on the GPU; set options.device to cpu, or "
            "install the CUDA libraries that its log names"
        )
    return session


def described(tensor: Any) -> str:
    """Return name, type and shape of an input or output of a session, such as ``x (float32, [?, 3])``."""
    return f"{tensor.name} ({DTYPES.get(tensor.type, tensor.type)}, {shape_text(tensor.shape)})"


def shape_text(shape: Any) -> str:
    """Return a shape as text; ``?`` is an axis of any length."""
    return f"[{', '.join(str(axis) if isinstance(axis, int) else '?' for axis in shape)}]"
