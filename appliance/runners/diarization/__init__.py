"""Kind `diarization`: finds who speaks when in a recording."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(
    name="diarization",
    model="appliance.runners.diarization.options:DiarizationModel",
    runner="appliance.runners.diarization.runner:DiarizationRunner",
    libraries=("torch", "transformers", "faster_whisper", "scipy"),
    packages=("torch", "transformers", "faster-whisper", "scipy"),
    # not faster_whisper: it imports onnxruntime, whose threads do not survive a fork
    preload=("av", "torch", "transformers.audio_utils", "scipy.cluster.hierarchy"),
)
