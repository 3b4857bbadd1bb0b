"""Kind `kokoro`: text to speech with Kokoro."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import SPEECH

KIND: Final = Kind(
    name="kokoro",
    model="appliance.runners.kokoro.options:KokoroModel",
    runner="appliance.runners.kokoro.runner:KokoroRunner",
    example_input="text",
    operations=frozenset({SPEECH}),
    libraries=("piper", "onnxruntime"),
    packages=("piper-tts", "onnxruntime"),
    preload=("av", "numpy"),  # not piper: it imports onnxruntime, whose threads do not survive a fork
)
