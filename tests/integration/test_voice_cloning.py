"""Speech of CSM with random weights: length, sampling rate, the reference, seeds, cancels and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio
from tests.integration.test_music import Heard
from tests.support import tiny_models
from tests.support.runner_calls import job, run
from tests.support.task_models import Models, runner_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TASK = "text-to-speech"
RATE = 24_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


def recording(folder: Path, seconds: float, pitch: float = 200, loudness: float = 0.5) -> Path:
    """A tone in a file with another sampling rate than the model's."""
    times = np.arange(int(16_000 * seconds), dtype=np.float32) / 16_000
    file = folder / f"{pitch:g}-{seconds:g}-{loudness:g}.wav"
    audio.write(file, loudness * np.sin(2 * np.pi * pitch * times).astype(np.float32), 16_000)
    return file


async def speak(models: Models, **given: Any) -> Any:
    return await models(TASK, tiny_models.csm, **{"text": "the bird", "max_duration": 1, "seed": 7, **given})


async def heard(models: Models, **given: Any) -> Any:
    return Heard((await speak(models, **given)).output).values


async def test_speech_has_the_sampling_rate_of_the_model_and_the_requested_length(models: Models) -> None:
    for seconds, form in ((1, "wav"), (3, "flac")):
        made = await speak(models, max_duration=seconds, output_format=form)
        found = Heard(made.output)
        assert (found.format, found.rate, found.channels, found.seconds) == (form, RATE, 1, seconds)
        assert made.metrics["audio_duration"] == seconds
        assert made.metrics["real_time_factor"] > 0


async def test_a_seed_is_a_voice(models: Models, capfd: pytest.CaptureFixture[str]) -> None:
    first = await heard(models)
    assert (first == await heard(models)).all()
    assert (first != await heard(models, seed=8)).any()
    logged = capfd.readouterr().err
    assert "Using seed: 7\n" in logged
    assert "100%|##########| 13/13\n" in logged, "12.5 frames a second"
    assert (await heard(models, seed=-1) != await heard(models, seed=-1)).any()


async def test_the_temperature_is_that_of_the_prediction(models: Models) -> None:
    cold = await heard(models, temperature=0.01)
    assert (cold == await heard(models, temperature=0.01, seed=8)).all(), "only the likeliest tokens"
    hot = await heard(models, temperature=2)
    assert (hot != cold).any()
    assert (cold == await heard(models, temperature=0.01)).all(), "the one before does not change it"


async def test_the_reference_changes_the_speech(models: Models, tmp_path: Path) -> None:
    low, high = recording(tmp_path, 2, pitch=120), recording(tmp_path, 2, pitch=900)
    plain = await heard(models)
    first = await heard(models, reference_audio=low, reference_text="the cat")
    assert first.size == plain.size, "the reference is not part of the output"
    assert (first != plain).any()
    assert (first == await heard(models, reference_audio=low, reference_text="the cat")).all()
    assert (first != await heard(models, reference_audio=high, reference_text="the cat")).any()
    assert (first != await heard(models, reference_audio=low, reference_text="the dog ran")).any()


@pytest.mark.parametrize(
    ("seconds", "loudness", "given", "error"),
    [
        (2, 0.5, {}, r"input\.reference_text: this model needs the words that are spoken"),
        (2, 0.5, {"reference_text": " "}, r"input\.reference_text: this model needs the words"),
        (None, 0.5, {"reference_text": "the cat"}, r"input\.reference_audio: .* send the recording,"),
        (31, 0.5, {"reference_text": "the cat"}, r"input\.reference_audio: this audio is longer than 30 s"),
        (0.4, 0.5, {"reference_text": "the cat"}, r"input\.reference_audio: .* 0\.4 s long; send one"),
        (2, 0.001, {"reference_text": "the cat"}, r"input\.reference_audio: this recording is silent"),
        (None, 0.5, {"text": " "}, r"input\.text: the text has nothing that can be spoken"),
        (None, 0.5, {"text": "a <|AUDIO|>"}, r"input\.text: remove <\|AUDIO\|> from this text"),
        (None, 0.5, {"text": "cat " * 600}, r"input\.text: .* 603 tokens, .* 13, .* 512 tokens;"),
        (20, 0.5, {"reference_text": "cat", "max_duration": 30}, r"260 tokens, and max_duration takes 375, "),
    ],
)
async def test_inputs_that_are_refused(
    models: Models,
    tmp_path: Path,
    seconds: float | None,
    loudness: float,
    given: dict[str, Any],
    error: str,
) -> None:
    files = {} if seconds is None else {"reference_audio": recording(tmp_path, seconds, loudness=loudness)}
    with pytest.raises(PredictionFailed, match=error):
        await speak(models, **files, **given)
    assert (await speak(models)).output.is_file(), "the model goes on"


async def test_a_file_without_audio_is_refused(models: Models, tmp_path: Path) -> None:
    file = tmp_path / "text.wav"
    file.write_text("no audio")
    with pytest.raises(PredictionFailed, match=r"input\.reference_audio: this audio cannot be decoded"):
        await speak(models, reference_audio=file, reference_text="the cat")


async def test_weights_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    tiny_models.csm(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(LoadFailed, match=r"the weights have no chat_template\.jinja, which CSM needs"):
        await runner_of(tmp_path, TASK).setup()


async def test_a_cancel_ends_the_computation(models: Models, tmp_path: Path) -> None:
    runner = await models.loaded(TASK, tiny_models.csm)
    interface = models.interface(TASK, tiny_models.csm)
    asked = job(interface, tmp_path, text="the bird", max_duration=30, seed=7)
    made = asyncio.create_task(run(runner, asked))
    await asyncio.sleep(0.1)
    assert not made.done(), "thirty seconds take longer"
    made.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made
    assert not list(tmp_path.glob("**/*.wav"))
    assert (await speak(models)).output.is_file()
