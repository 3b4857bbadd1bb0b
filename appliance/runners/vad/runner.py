"""Voice activity detection with Silero VAD, computed on the CPU even where there is a GPU.

The weights are MIT-licensed: https://github.com/snakers4/silero-vad
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance.domain.errors import LoadFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio, failures
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.onnx_session import described, open_session
from appliance.runners.schemas import number
from appliance.runners.threads import stepwise
from appliance.runners.vad.segments import find_segments

if TYPE_CHECKING:
    from appliance.runners.audio import Samples

_RATE: Final = 16_000  # samples/s
_FRAME: Final = 512  # samples that the model computes at a time ...
_CONTEXT: Final = 64  # ... after the last samples of the frame before
_STATE: Final = (2, 1, 128)  # shape of the model's memory of the frames before
_FRAMES_AT_ONCE: Final = 2000  # a cancel waits for them: half a second
_NAMES: Final = {"input", "state", "sr"}

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "audio": {**FILE, "description": "Audio or video file"},
    "threshold": number("Probability from which a frame is speech", default=0.5, ge=0.02, le=1),
    "min_speech": number("Shortest segment that is returned, in seconds", default=0.25, ge=0, le=60),
    "min_silence": number("Silence that ends a segment, in seconds", default=0.1, ge=0, le=60),
    "padding": number("Seconds added before and after each segment", default=0.03, ge=0, le=10),
}
_SECONDS: Final[dict[str, Any]] = {"type": "number"}
_OUTPUT: Final[dict[str, Any]] = {
    "type": "array",
    "items": {"type": "object", "properties": {"start": _SECONDS, "end": _SECONDS}},
}


class VadRunner:
    """Runs models of kind `vad`; the options are those of ``VadOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._session: Any

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return interface_of(_INPUTS, _OUTPUT, required=("audio",), aliases={"audio_file": "audio"})

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        file = weights if weights.is_file() else weights / "silero_vad.onnx"
        self._session = await asyncio.to_thread(open_session, file, self._spec)
        inputs = self._session.get_inputs()
        if {tensor.name for tensor in inputs} != _NAMES:
            raise LoadFailed(
                f"model {self._spec.model}: {file} is not Silero VAD, which has the inputs "
                f"{', '.join(sorted(_NAMES))}: it has {', '.join(map(described, inputs))}; correct the source"
            )

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        began = time.perf_counter()
        longest = self._spec.options["max_duration"]
        samples = await asyncio.to_thread(
            audio.read, Path(job.input["audio"]), _RATE, "audio", longest=longest
        )
        probabilities: list[float] = []
        async for part in stepwise(self._probabilities(samples)):
            probabilities += part
        seconds = samples.size / _RATE
        names = ("threshold", "min_speech", "min_silence", "padding")
        segments = find_segments(
            probabilities, _FRAME / _RATE, seconds, **{name: job.input[name] for name in names}
        )
        yield Metric("audio_duration", round(seconds, 3))
        yield Metric("real_time_factor", round((time.perf_counter() - began) / seconds, 4))
        found = [{"start": round(each.start, 3), "end": round(each.end, 3)} for each in segments]
        yield Output([found], append=False)

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _probabilities(self, samples: Samples) -> Generator[list[float], None, None]:
        """Yield the probabilities of speech in the frames, ``_FRAMES_AT_ONCE`` at a time."""
        import numpy as np

        state = np.zeros(_STATE, np.float32)
        rate = np.array(_RATE, np.int64)
        padded = np.pad(samples, (_CONTEXT, -samples.size % _FRAME))
        found: list[float] = []
        for at in range(0, samples.size, _FRAME):
            feeds = {"input": padded[None, at : at + _CONTEXT + _FRAME], "state": state, "sr": rate}
            probability, state = self._session.run(["output", "stateN"], feeds)
            found.append(float(probability[0, 0]))
            if len(found) == _FRAMES_AT_ONCE:
                yield found
                found = []
        yield found
