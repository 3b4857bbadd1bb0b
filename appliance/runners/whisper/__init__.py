"""Kind `whisper`: speech to text."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind
from appliance.runners.operations import TRANSCRIPTIONS

KIND: Final = Kind(
    name="whisper",
    model="appliance.runners.whisper.options:WhisperModel",
    runner="appliance.runners.whisper.runner:WhisperRunner",
    operations=frozenset({TRANSCRIPTIONS}),
    libraries=("faster_whisper", "ctranslate2", "transformers"),
    packages=("faster-whisper", "transformers"),
    # not faster_whisper: it imports onnxruntime, whose threads do not survive a fork
    preload=("av", "ctranslate2", "tokenizers", "transformers.models.whisper.tokenization_whisper"),
)
