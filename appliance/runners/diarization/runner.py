"""Speaker diarization: detects who speaks when. Always runs on the CPU, also on machines with a GPU.

Silero VAD, which faster-whisper contains, finds the speech. Resemblyzer's voice encoder and clustering tell
the speakers apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio, failures, speakers
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.progress import bar
from appliance.runners.schemas import integer
from appliance.runners.speakers import Turn
from appliance.runners.threads import stepwise
from appliance.runners.voice_encoder import RATE, VoiceEncoder, find_turns, load

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "audio": {**FILE, "description": "Audio or video file"},
    "num_speakers": integer("Number of speakers. Default: estimated from the audio", ge=1, le=50),
}
_NUMBER: Final = {"type": "number"}
_SEGMENT: Final = {
    "type": "object",
    "properties": {"start": _NUMBER, "end": _NUMBER, "speaker": {"type": "string"}},
}
_OUTPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "segments": {"type": "array", "items": _SEGMENT, "title": "Segments"},
        "num_speakers": {"type": "integer", "title": "Num Speakers"},
    },
    "required": ["segments", "num_speakers"],
}


class DiarizationRunner:
    """Runs models of kind `diarization`; the options are those of ``DiarizationOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._encoder: VoiceEncoder

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        aliases = {"audio_file": "audio", "file": "audio"}
        return interface_of(_INPUTS, _OUTPUT, required=("audio",), aliases=aliases)

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        self._encoder = await asyncio.to_thread(load, weights, self._spec)

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        began = time.perf_counter()
        longest = self._spec.options["max_duration"]
        samples = await asyncio.to_thread(
            audio.read, Path(job.input["audio"]), RATE, "audio", longest=longest
        )
        found: list[Turn] = []
        async for step in stepwise(find_turns(self._encoder, samples, job.input.get("num_speakers"))):
            if isinstance(step, list):
                found = step
            else:
                yield Log(f"{bar(step.done, step.total)}\n")
        segments = [
            {"start": round(each.start, 3), "end": round(each.end, 3), "speaker": speakers.name(each.speaker)}
            for each in found
        ]
        seconds = samples.size / RATE
        yield Metric("audio_duration", round(seconds, 3))
        yield Metric("real_time_factor", round((time.perf_counter() - began) / seconds, 4))
        count = len({each.speaker for each in found})
        yield Output([{"segments": segments, "num_speakers": count}], append=False)

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""
