"""Who speaks when, with the real weights that docs/models/speech.md names.

The first speaker is a Piper voice. The second is the same voice a third higher and faster, which has the
pitch and the resonances of a smaller speaker.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import yaml

from appliance import weights
from appliance.config import Config
from appliance.domain.errors import LoadFailed, PredictionFailed, WeightsError
from appliance.runners import audio
from appliance.runners.diarization.runner import DiarizationRunner
from appliance.runners.piper.runner import PiperRunner
from appliance.runners.whisper.options import WhisperOptions
from appliance.runners.whisper.runner import WhisperRunner
from tests.integration.test_speech import STEADY, VOICE, Loaded, fetched
from tests.support.appliance_process import ROOT, WEIGHTS
from tests.support.runner_calls import job, load_spec, run, word_error_rate

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

PAGE = ROOT / "docs/models/speech.md"
RATE = 16_000
LINES = (
    "Good morning everybody, thank you for coming to this meeting today.",
    "I would like to begin with the budget for the next year.",
    "The second subject is the new building, whose roof has to be repaired.",
    "Perhaps we should ask the engineers first, since they know the cost.",
)
LOW, HIGH = 0, 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def diarizer() -> AsyncIterator[Loaded]:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    entries = [model for block in blocks for model in yaml.safe_load(block)["models"]]
    (entry,) = (model for model in entries if model["kind"] == "diarization")
    (model,) = Config.model_validate({"models": [entry]}).models
    folder = weights.pull(WEIGHTS, model)
    options = model.options.model_dump(mode="json")
    runner = DiarizationRunner(load_spec("diarization", folder, **options))
    await runner.setup()
    yield Loaded(runner, runner.interface(options), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spoken(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Any]]:
    """The samples of each line, spoken by each of the two."""
    options: dict[str, Any] = {"voices": {}, "found": [VOICE]}
    voice = PiperRunner(load_spec("piper", fetched("piper"), **options))
    await voice.setup()
    made = []
    for number, line in enumerate(LINES):
        folder = tmp_path_factory.mktemp(f"line-{number}")
        file = (await run(voice, job(voice.interface(options), folder, text=line, **STEADY))).output
        low = audio.read(file, RATE, "audio", longest=60)
        places = np.arange(0, low.size - 1, 1.3)
        made.append((low, np.interp(places, np.arange(low.size), low).astype(np.float32)))
    yield made


def conversation(spoken: list[Any], voices: list[int], pause: float, file: Path) -> list[tuple[float, float]]:
    """Write a file in which the lines are said by ``voices``; return the start and end of each line."""
    parts, times, at = [], [], 0.0
    for number, voice in enumerate(voices):
        line = spoken[number % len(spoken)][voice]
        times.append((at, at + line.size / RATE))
        parts += [line, np.zeros(int(pause * RATE), np.float32)]
        at = times[-1][1] + pause
    audio.write(file, np.concatenate(parts), RATE)
    return times


@pytest.mark.parametrize("pause", [0.1, 0.8])
async def test_two_speakers_are_told_apart(
    diarizer: Loaded, spoken: list[Any], tmp_path: Path, pause: float
) -> None:
    times = conversation(spoken, [LOW, HIGH, LOW, HIGH], pause, tmp_path / "a.flac")
    ran = await diarizer(tmp_path, audio=tmp_path / "a.flac")
    assert ran.output["num_speakers"] == 2
    found = ran.output["segments"]
    assert [each["speaker"] for each in found] == ["SPEAKER_00", "SPEAKER_01"] * 2
    for segment, (start, end) in zip(found, times, strict=True):
        assert (segment["start"], segment["end"]) == pytest.approx((start, end), abs=0.5)
    assert ran.metrics["audio_duration"] == pytest.approx(times[-1][1] + pause, abs=0.01)
    assert "100%" in ran.logs


@pytest.mark.parametrize("voice", [LOW, HIGH])
async def test_one_speaker_is_one(diarizer: Loaded, spoken: list[Any], tmp_path: Path, voice: int) -> None:
    conversation(spoken, [voice] * 4, 0.6, tmp_path / "a.wav")
    ran = await diarizer(tmp_path, audio=tmp_path / "a.wav")
    assert ran.output["num_speakers"] == 1
    assert {each["speaker"] for each in ran.output["segments"]} == {"SPEAKER_00"}


async def test_the_number_of_speakers_may_be_given(
    diarizer: Loaded, spoken: list[Any], tmp_path: Path
) -> None:
    conversation(spoken, [LOW, HIGH, LOW, HIGH], 0.5, tmp_path / "a.wav")
    for count in (1, 2):
        ran = await diarizer(tmp_path, audio=tmp_path / "a.wav", num_speakers=count)
        assert ran.output["num_speakers"] == count


async def test_without_speech_nobody_speaks(diarizer: Loaded, tmp_path: Path) -> None:
    for samples in (np.zeros(RATE, np.float32), np.zeros(3, np.float32)):
        audio.write(tmp_path / "a.wav", samples, RATE)
        ran = await diarizer(tmp_path, audio=tmp_path / "a.wav")
        assert ran.output == {"segments": [], "num_speakers": 0}


async def test_a_transcript_names_the_speakers(diarizer: Loaded, spoken: list[Any], tmp_path: Path) -> None:
    options = WhisperOptions(speaker_encoder=diarizer.weights).model_dump(mode="json")
    ear = WhisperRunner(load_spec("whisper", fetched("whisper"), **options))
    await ear.setup()
    interface = ear.interface(options)
    conversation(spoken, [LOW, HIGH, LOW, HIGH], 0.5, tmp_path / "a.wav")
    heard = await run(ear, job(interface, tmp_path, audio=tmp_path / "a.wav", diarize=True))
    segments = heard.output["segments"]
    assert [each["id"] for each in segments] == list(range(len(segments)))
    for name, lines in (("SPEAKER_00", LINES[::2]), ("SPEAKER_01", LINES[1::2])):
        said = "".join(each["text"] for each in segments if each["speaker"] == name)
        assert word_error_rate(" ".join(lines), said) < 0.2, name
    assert all("words" not in each for each in segments)
    plain = await run(ear, job(interface, tmp_path, audio=tmp_path / "a.wav"))
    assert all("speaker" not in each for each in plain.output["segments"])
    assert plain.output["transcription"] == heard.output["transcription"]
    assert "diarize" not in WhisperRunner.interface(WhisperOptions().model_dump()).input["properties"]


async def test_a_cancel_ends_the_computation(diarizer: Loaded, spoken: list[Any], tmp_path: Path) -> None:
    conversation(spoken, [LOW, HIGH] * 20, 0.5, tmp_path / "a.wav")
    made = asyncio.create_task(diarizer(tmp_path, audio=tmp_path / "a.wav"))
    await asyncio.sleep(0.3)
    assert not made.done(), "a hundred seconds of audio take longer"
    made.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made


async def test_audio_that_is_too_long_and_other_weights(diarizer: Loaded, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.zeros(3 * RATE, np.float32), RATE)
    short = DiarizationRunner(load_spec("diarization", diarizer.weights, max_duration=2.0))
    await short.setup()
    with pytest.raises(PredictionFailed, match=r"input\.audio: this audio is longer than 2 s"):
        await run(short, job(diarizer.interface, tmp_path, audio=tmp_path / "a.wav"))
    for other in (tmp_path / "a.wav", tmp_path):
        with pytest.raises(LoadFailed, match=r"test/diarization: .* cannot be loaded as Resemblyzer"):
            await DiarizationRunner(load_spec("diarization", other, max_duration=2.0)).setup()
    with pytest.raises(WeightsError, match=r"options\.speaker_encoder: .*none\.pt does not exist"):
        WhisperOptions(speaker_encoder=tmp_path / "none.pt").completed(tmp_path)
