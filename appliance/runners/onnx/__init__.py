"""Kind `onnx`: models in ONNX files, whose inputs and outputs models.yaml describes."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(
    name="onnx",
    model="appliance.runners.onnx.options:OnnxModel",
    runner="appliance.runners.onnx.runner:OnnxRunner",
    libraries=("onnxruntime", "tokenizers"),
    packages=("onnxruntime", "tokenizers"),
    preload=(
        "av",
        "numpy",
        "PIL.Image",
        "appliance.runners.onnx.options",
    ),  # not onnxruntime: its threads do not survive a fork
)
