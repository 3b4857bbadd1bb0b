"""Kind `vad`: voice activity detection, which finds the parts of a recording in which someone speaks."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(
    name="vad",
    model="appliance.runners.vad.options:VadModel",
    runner="appliance.runners.vad.runner:VadRunner",
    libraries=("onnxruntime",),
    packages=("onnxruntime",),
    preload=("av", "numpy"),  # not onnxruntime: its threads do not survive a fork
)
