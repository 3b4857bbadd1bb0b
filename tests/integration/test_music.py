"""Music and sounds of models with random weights: length, channels, sampling rate, seeds and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio
from tests.integration.test_diffusers import Loaded, spec_of
from tests.support import random_pipelines, tiny_models
from tests.support.runner_calls import job, run
from tests.support.task_models import Models, runner_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Should have:UserWarning"),  # of torchsde, about rounding
]

TASK = "text-to-audio"
RATE = 3200  # of the tiny MusicGen models


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


class Heard:
    """An audio file, decoded."""

    def __init__(self, file: Path) -> None:
        with av.open(str(file)) as container:
            stream = container.streams.audio[0]
            self.format, self.rate, self.channels = container.format.name, stream.rate, stream.channels
            parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]
        self.values = np.concatenate(parts)

    @property
    def seconds(self) -> float:
        return float(self.values.size / self.channels / self.rate)


@pytest.mark.parametrize(
    ("maker", "channels"),
    [
        (tiny_models.musicgen, 1),
        (tiny_models.musicgen_stereo, 2),
        (tiny_models.musicgen_melody, 1),
    ],
)
async def test_musicgen_makes_audio_of_the_requested_length(
    models: Models, maker: Callable[[Path], None], channels: int
) -> None:
    for seconds in (1, 3):
        made = await models(TASK, maker, prompt="the bird", duration=seconds)
        heard = Heard(made.output)
        assert (heard.format, heard.rate, heard.channels) == ("wav", RATE, channels)
        assert heard.seconds == seconds
        assert made.metrics["audio_duration"] == seconds
        assert made.metrics["output_token_count"] == 50 * seconds


async def test_a_seed_is_a_sound(models: Models, capfd: pytest.CaptureFixture[str]) -> None:
    async def made(**given: Any) -> Any:
        return Heard((await models(TASK, prompt="the bird", duration=1, **given)).output).values

    first, other = await made(seed=7), await made(seed=8)
    assert (first == await made(seed=7)).all()
    assert (first != other).any()
    logged = capfd.readouterr().err
    assert "Using seed: 7\n" in logged
    assert "100%|##########| 53/53\n" in logged, "50 tokens, and 3 for the delay of the codebooks"
    greedy = await made(seed=7, top_k=1)
    assert (greedy == await made(seed=8, top_k=1)).all(), "only one token can be chosen"
    assert (greedy == await made(seed=9, top_p=1e-6)).all(), "top_p replaces top_k"
    assert (await made(seed=7, top_k=1, classifier_free_guidance=9) != greedy).any()
    assert (await made() != await made()).any(), "without a seed, each prediction has its own"


@pytest.mark.parametrize("maker", [tiny_models.musicgen, tiny_models.musicgen_stereo])
async def test_audio_is_continued(models: Models, tmp_path: Path, maker: Callable[[Path], None]) -> None:
    file = tmp_path / "start.mp3"
    audio.write(file, np.sin(np.arange(16_000, dtype=np.float32)), 16_000)
    made = await models(TASK, maker, prompt="the bird", input_audio=file, duration=3, output_format="flac")
    heard = Heard(made.output)
    assert (heard.format, heard.seconds) == ("flac", 3)
    assert made.metrics["output_token_count"] in {98, 99, 100}, "the tokens of two seconds"
    with pytest.raises(PredictionFailed, match=r"input\.duration: .* input_audio, which has 1\.\d s; choose"):
        await models(TASK, maker, prompt="the bird", input_audio=file, duration=1)


async def test_inputs_that_the_model_refuses(models: Models, tmp_path: Path) -> None:
    file = tmp_path / "start.wav"
    audio.write(file, np.zeros(8000, np.float32), 16_000)
    with pytest.raises(PredictionFailed, match=r"input\.input_audio: MusicGen Melody cannot continue audio"):
        await models(TASK, tiny_models.musicgen_melody, prompt="the bird", input_audio=file)
    with pytest.raises(PredictionFailed, match=r"input\.prompt: the text has 101 tokens, .* at most 64"):
        await models(TASK, prompt="bird " * 99)
    file.write_text("no audio")
    with pytest.raises(PredictionFailed, match=r"input\.input_audio: "):
        await models(TASK, prompt="the bird", input_audio=file)


async def test_other_models_are_refused(models: Models) -> None:
    with pytest.raises(LoadFailed, match="supports the model types musicgen and musicgen_melody, not 'vits'"):
        await runner_of(models.made(tiny_models.text_to_speech), TASK).setup()


async def test_a_cancel_ends_the_computation(models: Models) -> None:
    runner = await models.loaded(TASK)
    asked = job(runner.interface({"task": TASK}), models.folder, prompt="the bird", duration=30)
    made = asyncio.create_task(run(runner, asked))
    await asyncio.sleep(0.2)
    assert not made.done(), "thirty seconds take longer"
    made.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made
    assert (await models(TASK, prompt="the bird", duration=1)).output is not None


async def test_diffusers_makes_audio(tmp_path: Path) -> None:
    loaded = Loaded(spec_of(random_pipelines.stable_audio(tmp_path / "weights")), tmp_path / "made")
    await loaded.runner.setup()
    given = {"prompt": "x", "num_inference_steps": 2, "output_format": "flac"}
    heard = Heard(await loaded.run(duration=1.5, seed=7, **given))
    assert (heard.format, heard.rate, heard.channels, heard.seconds) == ("flac", 4000, 2, 1.5)
    assert loaded.metrics["audio_duration"] == 1.5
    assert "Using seed: 7\n" in loaded.logs
    again = Heard(await loaded.run(seconds_total=1.5, seed=7, **given))
    assert (heard.values == again.values).all()
    other = Heard(await loaded.run(duration=1.5, seed=8, **given))
    assert (heard.values != other.values).any()
    mp3 = Heard(await loaded.run(prompt="x", num_inference_steps=1, output_format="mp3"))
    assert mp3.seconds == pytest.approx(2.048, abs=0.3), "the model's own length"
    with pytest.raises(PredictionFailed, match=r"total audio length requested \(9\.0s\) is longer than"):
        await loaded.run(duration=9, **given)


async def test_diffusers_stops_at_the_next_step(tmp_path: Path) -> None:
    loaded = Loaded(spec_of(random_pipelines.stable_audio(tmp_path / "weights")), tmp_path / "made")
    await loaded.runner.setup()
    made = asyncio.create_task(loaded.run(prompt="x", num_inference_steps=500))
    await asyncio.sleep(0.2)
    assert not made.done(), "five hundred steps take longer"
    made.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made
