"""Kind `piper`: text to speech."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import SPEECH

KIND: Final = Kind(
    name="piper",
    model="appliance.runners.piper.options:PiperModel",
    runner="appliance.runners.piper.runner:PiperRunner",
    example_input="text",
    operations=frozenset({SPEECH}),
    libraries=("piper", "onnxruntime"),
    packages=("piper-tts", "onnxruntime"),
    preload=("av", "numpy"),  # not piper: it imports onnxruntime, whose threads do not survive a fork
)
