"""Kind `kokoro`, with a tiny model that has the inputs and the output of Kokoro, not with real weights."""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import openai
import pytest
import pytest_asyncio
from replicate.prediction import Prediction

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.prediction import Log, Output
from appliance.runners.kokoro.runner import KokoroRunner
from appliance.runners.operations import SPEECH
from tests.support import tiny_kokoro
from tests.support.appliance_process import TOKEN, Appliance
from tests.support.runner_calls import Ran, job, load_spec, run
from tests.support.tiny_kokoro import SAMPLES, sound

pytestmark = pytest.mark.integration

HELLO = "həlˈoʊ wˈɜːld."
RATE = 24_000
OPTIONS: dict[str, Any] = {
    "voices": {"alloy": "af_alloy"},
    "found": ["af_alloy", "af_bella", "bm_george"],
}


async def loaded(folder: Path) -> KokoroRunner:
    runner = KokoroRunner(load_spec("kokoro", folder, **OPTIONS))
    await runner.setup()
    return runner


@pytest_asyncio.fixture
async def runner(tmp_path_factory: pytest.TempPathFactory) -> KokoroRunner:
    return await loaded(tiny_kokoro.write_hub_folder(tmp_path_factory.mktemp("weights")))


async def speak(runner: KokoroRunner, folder: Path, **given: Any) -> Ran:
    return await run(runner, job(runner.interface(OPTIONS), folder, **given))


def samples(file: Path | io.BytesIO) -> tuple[int, Any]:
    """Return the sampling rate and the samples of an audio file."""
    with av.open(str(file) if isinstance(file, Path) else file) as container:
        stream = container.streams.audio[0]
        parts = [frame.to_ndarray().ravel() for frame in container.decode(stream)]
        return stream.rate, np.concatenate(parts) / 32767


async def test_the_model_gets_tokens_and_the_style_for_their_number(
    runner: KokoroRunner, tmp_path: Path
) -> None:
    made = await speak(runner, tmp_path, text="Hello world.")
    rate, heard = samples(made.output)
    assert rate == RATE
    np.testing.assert_allclose(heard, sound(HELLO, "af_bella"), atol=1e-4)
    assert made.metrics["audio_duration"] == round((len(HELLO) + 2) * SAMPLES / RATE, 3)
    assert made.metrics["input_character_count"] == 12


@pytest.mark.parametrize(
    ("voice", "name", "expected"),
    [
        ("af_alloy", "af_alloy", "wˈɔːɾɚ."),
        ("alloy", "af_alloy", "wˈɔːɾɚ."),
        ("bm_george", "bm_george", "wˈɔːtə."),
    ],
)
async def test_a_voice_has_its_style_and_its_language(
    runner: KokoroRunner, tmp_path: Path, voice: str, name: str, expected: str
) -> None:
    _, heard = samples((await speak(runner, tmp_path, text="Water.", voice=voice)).output)
    np.testing.assert_allclose(heard, sound(expected, name), atol=1e-4)


async def test_speed(runner: KokoroRunner, tmp_path: Path) -> None:
    usual = await speak(runner, tmp_path / "usual", text="Hello world.")
    fast = await speak(runner, tmp_path / "fast", text="Hello world.", speed=2)
    assert samples(fast.output)[1].size * 2 == samples(usual.output)[1].size


@pytest.mark.parametrize(
    ("form", "kind"), [("mp3", "mp3"), ("flac", "flac"), ("opus", "ogg"), ("aac", "aac")]
)
async def test_formats(runner: KokoroRunner, tmp_path: Path, form: str, kind: str) -> None:
    made = await speak(runner, tmp_path, text="Hello world.", output_format=form)
    assert made.output.name == f"output.{form}"
    with av.open(str(made.output)) as container:
        assert container.format.name == kind
        assert container.streams.audio[0].rate in {RATE, 48_000}  # opus is always decoded at 48 kHz


async def test_a_long_text_is_computed_in_parts(runner: KokoroRunner, tmp_path: Path) -> None:
    sentence = "This is one of many sentences. "
    made = await speak(runner, tmp_path, text=sentence * 40)
    progress = Prediction.Progress.parse(made.logs)
    assert progress is not None
    assert progress.current == progress.total > 1
    _, heard = samples(made.output)
    starts = np.flatnonzero(heard[::SAMPLES] == 0)  # the padding before and after each part
    assert starts.size == 2 * progress.total
    lengths = np.diff(starts)[::2] - 1
    assert 100 < lengths.max() <= 200


async def test_a_text_without_words_is_refused(runner: KokoroRunner, tmp_path: Path) -> None:
    for text in ("!!! ...", " ", "—"):
        with pytest.raises(PredictionFailed, match=r"input\.text: the text has nothing that can be spoken"):
            await speak(runner, tmp_path, text=text)


async def test_an_unknown_voice_is_refused(runner: KokoroRunner, tmp_path: Path) -> None:
    asked = job(runner.interface(OPTIONS), tmp_path, text="Hi")
    with pytest.raises(
        PredictionFailed, match=r"input\.voice: there is no voice 'x'; choose one of af_alloy"
    ):
        await run(runner, msgspec.structs.replace(asked, input={**asked.input, "voice": "x"}))


async def test_a_stream_has_audio_after_each_part(runner: KokoroRunner, tmp_path: Path) -> None:
    asked = job(runner.interface(OPTIONS), tmp_path, text="This is one sentence. " * 20)
    streamed = msgspec.structs.replace(asked, operation=SPEECH)
    events = [event.values[0] async for event in runner.run(streamed) if isinstance(event, Output)]
    deltas = [event for event in events if event["type"] == "speech.audio.delta"]
    assert len(deltas) > 1
    assert events[-1] == {"type": "speech.audio.done"}
    rate, heard = samples(io.BytesIO(b"".join(b64decode(event["audio"]) for event in deltas)))
    assert rate == RATE
    whole = await run(runner, asked)
    np.testing.assert_array_equal(heard, samples(whole.output)[1])


async def test_a_cancelled_prediction_ends_between_parts(runner: KokoroRunner, tmp_path: Path) -> None:
    asked = job(runner.interface(OPTIONS), tmp_path, text="This is one of many sentences. " * 400)
    first = asyncio.Event()

    async def predict() -> None:
        async for event in runner.run(asked):
            if isinstance(event, Log):
                first.set()
                await asyncio.sleep(0)

    prediction = asyncio.create_task(predict())
    await first.wait()
    prediction.cancel()
    with pytest.raises(asyncio.CancelledError):
        await prediction
    assert not list(tmp_path.iterdir()), "no file is written"
    assert (await speak(runner, tmp_path, text="Hi.")).output.exists()


async def test_the_files_of_kokoro_onnx(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    runner = await loaded(tiny_kokoro.write_release_folder(weights))
    _, heard = samples((await speak(runner, tmp_path, text="Hello world.")).output)
    np.testing.assert_allclose(heard, sound(HELLO, "af_bella"), atol=1e-4)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without("onnx/model.onnx"), r"has no \.onnx file"),
        (without("tokenizer.json"), r"has no vocabulary; add tokenizer\.json"),
        (without("voices/af_alloy.bin"), r"options\.voices\.alloy names the voice af_alloy"),
        (written("onnx/model.onnx", b"no model"), r"model\.onnx cannot be loaded"),
        (written("tokenizer.json", b"no JSON"), r"tokenizer\.json has no readable vocabulary"),
        (written("voices/af_bella.bin", bytes(1000)), r"the voice af_bella .* style vectors of 256 numbers"),
        (
            lambda folder: tiny_kokoro.write_model(folder / "onnx" / "model.onnx", "words"),
            r"is not a Kokoro model: it has the inputs words \(int64",
        ),
        (
            lambda folder: [file.unlink() for file in folder.glob("voices/[ab]*")],
            "has no voice of a supported language",
        ),
    ],
)
async def test_weights_that_cannot_be_used(
    tmp_path: Path, change: Callable[[Path], object], error: str
) -> None:
    change(tiny_kokoro.write_hub_folder(tmp_path))
    with pytest.raises(LoadFailed, match=error):
        await loaded(tmp_path)


async def test_weights_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="there are no weights at"):
        await loaded(tmp_path / "none")


def test_the_speech_route_of_openais_api(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    tiny_kokoro.write_hub_folder(weights)
    model = {
        "name": "test/kokoro",
        "kind": "kokoro",
        "source": {"path": str(weights)},
        "options": {"voices": {"alloy": "af_alloy"}},
    }
    config = tmp_path / "models.yaml"
    config.write_text(json.dumps({"models": [model]}))
    appliance = Appliance(tmp_path / "home", config)
    appliance.start()
    try:
        with openai.OpenAI(
            base_url=f"{appliance.url}/openai/v1",
            api_key=TOKEN,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        ) as client:
            speech = client.audio.speech
            given: Any = {"model": "test/kokoro", "input": "Hello world.", "response_format": "wav"}
            for voice, expected in (
                ("alloy", sound(HELLO, "af_alloy")),
                ("bm_george", sound("həlˈəʊ wˈɜːld.", "bm_george")),
            ):
                rate, heard = samples(io.BytesIO(speech.create(voice=voice, **given).content))
                assert rate == RATE
                np.testing.assert_allclose(heard, expected, atol=1e-4)
            with pytest.raises(openai.BadRequestError, match="voice must be one of"):
                speech.create(voice="nobody", **given)
            with speech.with_streaming_response.create(
                voice="alloy", stream_format="audio", **given
            ) as reply:
                streamed = reply.read()
            np.testing.assert_allclose(samples(io.BytesIO(streamed))[1], sound(HELLO, "af_alloy"), atol=1e-4)
    finally:
        appliance.stop()
    assert appliance.processes() == []
