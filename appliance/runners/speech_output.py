"""Events of a text-to-speech prediction: an audio stream or an audio file, and metrics."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio
from appliance.runners.operations import SPEECH
from appliance.runners.progress import bar
from appliance.runners.threads import stepwise


async def speech_output(
    job: Job, parts: Iterator[audio.Samples], count: int, rate: int, began: float
) -> AsyncIterator[Log | Output | Metric]:
    """Yield the events of a prediction whose audio is ``parts``, computed one at a time in a thread.

    With the operation of a speech stream, the output is the events of the stream. Otherwise it is a file in
    the format of the input `output_format`.

    Args:
        job: the prediction.
        parts: the samples of each part, which is computed when it is asked for.
        count: number of parts, at least 1.
        rate: samples/s.
        began: ``time.perf_counter()`` at the start of the prediction.
    """
    import numpy as np

    spoken: list[audio.Samples] = []
    noted = _noted(parts, spoken)
    if job.operation == SPEECH:
        chunks = audio.encoded(noted, rate, job.input["output_format"])
        async for chunk in stepwise(chunks):
            yield Output([{"type": "speech.audio.delta", "audio": b64encode(chunk).decode()}])
        yield Metric("audio_duration", round(sum(map(len, spoken)) / rate, 3))
        yield Output([{"type": "speech.audio.done"}])
        return
    async for _ in stepwise(noted):
        yield Log(f"{bar(len(spoken), count)}\n")
    folder = Path(job.folder)
    file = folder / f"output.{job.input['output_format']}"
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    samples = np.concatenate(spoken)
    await asyncio.to_thread(audio.write, file, samples, rate)
    yield Metric("audio_duration", round(samples.size / rate, 3))
    yield Metric("real_time_factor", round((time.perf_counter() - began) * rate / samples.size, 4))
    yield Output([file], append=False)


def _noted(parts: Iterator[audio.Samples], seen: list[audio.Samples]) -> Generator[audio.Samples, None, None]:
    """Append each part to ``seen``, and then yield it."""
    for part in parts:
        seen.append(part)
        yield part
