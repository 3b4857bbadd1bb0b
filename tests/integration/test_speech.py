"""The default voice and the default recogniser, with their real weights, in this process."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from replicate.prediction import Prediction

from appliance import config, weights
from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Log
from appliance.runners import audio
from appliance.runners.base import Runner
from appliance.runners.piper.runner import PiperRunner
from appliance.runners.whisper.options import WhisperOptions
from appliance.runners.whisper.runner import WhisperRunner
from tests.support.appliance_process import ROOT, WEIGHTS, until
from tests.support.runner_calls import Ran, job, load_spec, run, word_error_rate

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SENTENCE = "Machines that listen should understand what other machines say."
STORY = f"{SENTENCE} The quick brown fox jumps over the lazy dog. Yesterday it rained all day in the city."
STEADY: dict[str, Any] = {"noise_scale": 0, "noise_w": 0}  # the same sound every time
VOICE = "en_US-joe-medium"
LANGUAGES: dict[str, Any] = WhisperOptions().model_dump(mode="json")


class Loaded(NamedTuple):
    """A runner and its interface."""

    runner: Runner
    interface: Interface
    weights: Path

    async def __call__(self, folder: Path, **given: Any) -> Ran:
        return await run(self.runner, job(self.interface, folder, **given))


def fetched(kind: str) -> Path:
    """The default weights; fetched once for all test runs."""
    model = next(model for model in config.load(ROOT / "models.yaml").models if model.kind == kind)
    return weights.pull(WEIGHTS, model)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def voice() -> AsyncIterator[Loaded]:
    folder = fetched("piper")
    options = {"voices": {"alloy": VOICE}, "found": [VOICE]}
    runner = PiperRunner(load_spec("piper", folder, **options))
    await runner.setup()
    yield Loaded(runner, runner.interface(options), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ear() -> AsyncIterator[Loaded]:
    folder = fetched("whisper")
    runner = WhisperRunner(load_spec("whisper", folder, **LANGUAGES))
    await runner.setup()
    yield Loaded(runner, runner.interface(LANGUAGES), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spoken(voice: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentence, as the voice says it."""
    file: Path = (await voice(tmp_path_factory.mktemp("spoken"), text=SENTENCE, **STEADY)).output
    return file


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(voice: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sentences."""
    file: Path = (await voice(tmp_path_factory.mktemp("story"), text=STORY, **STEADY)).output
    return file


def length(file: Path) -> float:
    """Seconds of sound in a file."""
    return audio.read(file, 16_000, "file", longest=1e6).size / 16_000


async def test_what_the_voice_says_is_heard(ear: Loaded, spoken: Path, tmp_path: Path) -> None:
    heard = await ear(tmp_path, audio=spoken)
    rate = word_error_rate(SENTENCE, heard.output["transcription"])
    print(f"word error rate {rate:.3f}: {heard.output['transcription']}")
    assert rate < 0.2
    assert heard.output["detected_language"] == "english"
    assert "translation" not in heard.output
    assert heard.metrics["audio_duration"] == pytest.approx(length(spoken), abs=0.01)
    assert heard.metrics["real_time_factor"] > 0


@pytest.mark.parametrize(
    ("form", "kind"), [("wav", "wav"), ("mp3", "mp3"), ("flac", "flac"), ("opus", "ogg")]
)
async def test_every_format_is_what_it_says_and_is_heard(
    voice: Loaded, ear: Loaded, tmp_path: Path, form: str, kind: str
) -> None:
    made = await voice(tmp_path, text=SENTENCE, output_format=form, **STEADY)
    assert made.output.name == f"output.{form}"
    with av.open(str(made.output)) as container:
        assert container.format.name == kind
        assert [stream.type for stream in container.streams] == ["audio"]
    assert length(made.output) == pytest.approx(made.metrics["audio_duration"], abs=0.1)
    heard = await ear(tmp_path, audio=made.output)
    assert word_error_rate(SENTENCE, heard.output["transcription"]) < 0.2


async def test_speed(voice: Loaded, tmp_path: Path) -> None:
    slow = await voice(tmp_path / "slow", text=SENTENCE, speed=0.5)
    fast = await voice(tmp_path / "fast", text=SENTENCE, speed=2)
    assert length(slow.output) > 2.5 * length(fast.output)


async def test_sentences_are_counted_as_they_are_spoken(voice: Loaded, tmp_path: Path) -> None:
    made = await voice(tmp_path, text="One. Two. Three.")
    progress = Prediction.Progress.parse(made.logs)
    assert progress is not None
    assert (progress.current, progress.total) == (3, 3)
    assert made.metrics["input_character_count"] == 16


CUE = r"(\d\d):(\d\d):(\d\d)[,.](\d\d\d)"


@pytest.mark.parametrize(
    ("form", "head", "point"), [("srt", r"1\n", ","), ("vtt", r"WEBVTT\n\n", "."), ("plain text", "", "")]
)
async def test_transcriptions_in_the_formats_of_subtitles(
    ear: Loaded, story: Path, tmp_path: Path, form: str, head: str, point: str
) -> None:
    heard = await ear(tmp_path, audio=story, transcription=form)
    text = heard.output["transcription"]
    assert re.match(head, text)
    times = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in re.findall(CUE, text)]
    assert len(times) == (2 * len(heard.output["segments"]) if point else 0)
    assert times == sorted(times)
    assert not times or times[-1] <= length(story) + 0.5
    assert not times or re.search(rf"\d\d{re.escape(point)}\d\d\d --> ", text)
    spoken_only = re.sub(rf"{CUE} --> {CUE}|^\d+$|WEBVTT", "", text, flags=re.MULTILINE)
    assert word_error_rate(STORY, spoken_only) < 0.2
    progress = Prediction.Progress.parse(heard.logs)
    assert progress is not None
    assert progress.percentage == 1
    assert "-->" in heard.logs


async def test_words_come_one_after_the_other(ear: Loaded, spoken: Path, tmp_path: Path) -> None:
    heard = await ear(tmp_path, audio=spoken, word_timestamps=True)
    words = [word for segment in heard.output["segments"] for word in segment["words"]]
    assert len(words) == len(heard.output["transcription"].split())
    assert "".join(word["word"] for word in words).strip() == heard.output["transcription"]
    times = [at for word in words for at in (word["start"], word["end"])]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= length(spoken) + 0.1
    without = await ear(tmp_path, audio=spoken)
    assert all("words" not in segment for segment in without.output["segments"])


async def test_a_long_sound_is_heard_in_parts(
    ear: Loaded, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = audio.read(story, 16_000, "file", longest=60)
    audio.write(tmp_path / "twice.wav", np.concatenate([samples, samples]), 16_000)
    monkeypatch.setattr("appliance.runners.whisper.runner._CHUNK", samples.size + 16_000)
    monkeypatch.setattr("appliance.runners.whisper.runner._CUT_WINDOW", 32_000)
    heard = await ear(tmp_path, audio=tmp_path / "twice.wav", word_timestamps=True)
    segments = heard.output["segments"]
    assert word_error_rate(f"{STORY} {STORY}", heard.output["transcription"]) < 0.2
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    times = [at for segment in segments for word in segment["words"] for at in (word["start"], word["end"])]
    assert times == sorted(times)
    assert samples.size / 16_000 < times[-1] <= 2 * samples.size / 16_000 + 0.1
    assert all(part["start"] <= word["start"] for part in segments for word in part["words"])


async def test_the_sound_of_a_film(ear: Loaded, spoken: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    samples = audio.read(spoken, 48_000, "file", longest=60)
    with av.open(str(film), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        picture.width, picture.height = 64, 48
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        whole = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        whole.sample_rate = 48_000
        container.mux(sound.encode(whole))
        container.mux(sound.encode(None))
    heard = await ear(tmp_path, audio=film)
    assert word_error_rate(SENTENCE, heard.output["transcription"]) < 0.2


async def test_silence_is_no_error(ear: Loaded, tmp_path: Path) -> None:
    audio.write(tmp_path / "silence.wav", np.zeros(32_000, np.float32), 16_000)
    assert (await ear(tmp_path, audio=tmp_path / "silence.wav")).output["detected_language"] == "english"


def broken_files(folder: Path, good: Path) -> dict[str, Path]:
    """Files that are no sound, by what is said of them."""
    files = {name: folder / name for name in ("text", "nothing", "beginning", "picture", "playlist", "list")}
    files["text"].write_text("This is a text, and no sound at all. " * 50)
    files["nothing"].touch()
    files["beginning"].write_bytes(good.read_bytes()[:30])
    Image.new("RGB", (64, 64), "red").save(files["picture"], format="PNG")
    shutil.copy(good, folder / "beside.wav")
    files["playlist"].write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nbeside.wav\n#EXT-X-ENDLIST\n")
    files["list"].write_text("ffconcat version 1.0\nfile beside.wav\n")
    return files


@pytest.mark.parametrize("name", ["text", "nothing", "beginning", "picture", "playlist", "list"])
async def test_what_is_no_sound_is_refused_by_name(
    ear: Loaded, spoken: Path, tmp_path: Path, name: str
) -> None:
    file = broken_files(tmp_path, spoken)[name]
    with pytest.raises(PredictionFailed, match=r"^input\.audio: this (audio cannot|file has no audio)"):
        await ear(tmp_path, audio=file)
    heard = await ear(tmp_path, audio=spoken)
    assert word_error_rate(SENTENCE, heard.output["transcription"]) < 0.2


async def test_a_sound_that_is_too_long(ear: Loaded, spoken: Path, tmp_path: Path) -> None:
    short = WhisperRunner(load_spec("whisper", ear.weights, **LANGUAGES | {"max_duration": 1.0}))
    await short.setup()
    with pytest.raises(PredictionFailed, match=r"input\.audio: this audio is longer than 1 s"):
        await run(short, job(ear.interface, tmp_path, audio=spoken))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"language": "de"}, r"input\.language: this model does not support 'de'; it supports only English"),
        ({"language": "Klingon"}, r"input\.language: this model does not support 'Klingon'"),
        ({"translate": True}, r"input\.translate: this model supports only English"),
        ({"suppress_tokens": "a,b"}, r"input\.suppress_tokens: this must be whole numbers"),
    ],
)
async def test_what_this_recogniser_cannot_do(
    ear: Loaded, spoken: Path, tmp_path: Path, given: dict[str, Any], error: str
) -> None:
    with pytest.raises(PredictionFailed, match=error):
        await ear(tmp_path, audio=spoken, **given)


@pytest.mark.parametrize("language", ["en", "English", "auto", "None", ""])
async def test_english_by_any_name(ear: Loaded, spoken: Path, tmp_path: Path, language: str) -> None:
    heard = await ear(tmp_path, audio=spoken, language=language, temperature_increment_on_fallback=0)
    assert heard.output["detected_language"] == "english"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"text": " \n "}, r"input\.text: the text has nothing that can be spoken"),
        ({"text": "Hi.", "speaker": "7"}, r"input\.speaker: this voice has only one speaker"),
    ],
)
async def test_what_the_voice_cannot_say(
    voice: Loaded, tmp_path: Path, given: dict[str, Any], error: str
) -> None:
    with pytest.raises(PredictionFailed, match=error):
        await voice(tmp_path, **given)
    assert length((await voice(tmp_path, text="Hi.", voice="alloy")).output) > 0


async def test_a_text_without_an_end(voice: Loaded, tmp_path: Path) -> None:
    made = await voice(tmp_path, text="on and on and " * 120)
    progress = Prediction.Progress.parse(made.logs)
    assert progress is not None
    assert progress.total > 1, "it is spoken in parts"
    assert length(made.output) > 20


async def stopped_after_the_first_line(loaded: Loaded, folder: Path, **given: Any) -> int:
    """Cancel once there is progress; how many lines there were."""
    begun, lines = asyncio.Event(), 0

    async def predict() -> None:
        nonlocal lines
        async for event in loaded.runner.run(job(loaded.interface, folder, **given)):
            if isinstance(event, Log):
                lines += 1
                begun.set()

    task = asyncio.create_task(predict())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return lines


async def test_a_cancel_ends_a_long_text_between_sentences(voice: Loaded, tmp_path: Path) -> None:
    assert await stopped_after_the_first_line(voice, tmp_path, text="This is a sentence. " * 500) < 100
    assert length((await voice(tmp_path, text="Hi.")).output) > 0


async def test_a_cancel_ends_a_long_transcription(
    ear: Loaded, story: Path, spoken: Path, tmp_path: Path
) -> None:
    samples = np.tile(audio.read(story, 16_000, "file", longest=60), 30)
    file = tmp_path / "long.wav"
    audio.write(file, samples, 16_000)
    once = {"temperature_increment_on_fallback": 0, "condition_on_previous_text": False}
    assert await stopped_after_the_first_line(ear, tmp_path, audio=file, **once) < 20
    assert (await ear(tmp_path, audio=spoken)).output["segments"]


async def test_audio_of_several_predictions_is_transcribed_at_the_same_time(
    ear: Loaded, spoken: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the transcript that it has alone, while one fails and one is cancelled."""
    options = LANGUAGES | {"num_workers": 2}
    runner = WhisperRunner(load_spec("whisper", ear.weights, **options))
    await runner.setup()
    pair, begun = threading.Barrier(2), []
    transcribe = runner._model.transcribe

    def both(*arguments: Any, **more: Any) -> Any:
        begun.append(pair.wait(60))  # both predictions are here at the same time
        return transcribe(*arguments, **more)

    def predict(audio: Path, **given: Any) -> asyncio.Task[Ran]:
        return asyncio.ensure_future(run(runner, job(ear.interface, tmp_path, audio=audio, **given)))

    expected = [await ear(tmp_path, audio=file, word_timestamps=True) for file in (spoken, story)]
    monkeypatch.setattr(runner._model, "transcribe", both)
    (tmp_path / "text.wav").write_text("no sound")
    tasks = [predict(file, word_timestamps=True) for file in (spoken, story, tmp_path / "text.wav")]
    first, second, wrong = await asyncio.gather(*tasks, return_exceptions=True)
    for found, alone in zip((first, second), expected, strict=True):
        assert isinstance(found, Ran)
        assert found.output == alone.output
        assert found.logs == alone.logs
        assert found.metrics["audio_duration"] == alone.metrics["audio_duration"]
    assert isinstance(wrong, PredictionFailed)

    kept, cancelled = predict(spoken, word_timestamps=True), predict(story)
    await until(lambda: len(begun) == 4)
    cancelled.cancel()
    assert (await kept).output == expected[0].output
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def refusal(runner: Runner) -> str:
    with pytest.raises(LoadFailed) as caught:
        await runner.setup()
    return caught.value.detail


async def test_weights_of_a_recogniser_that_cannot_be_used(ear: Loaded, tmp_path: Path) -> None:
    def made(folder: Path, **more: Any) -> WhisperRunner:
        return WhisperRunner(load_spec("whisper", folder, **LANGUAGES | more))

    assert "there are no weights at" in await refusal(made(tmp_path / "none"))
    assert "has no model.bin" in await refusal(made(tmp_path))
    assert "float16" in await refusal(made(ear.weights, compute_type="float16"))
    folder = tmp_path / "broken"
    shutil.copytree(ear.weights, folder)
    with (folder / "model.bin").open("r+b") as file:
        file.truncate(100_000)
    assert "cannot be loaded as a Whisper model" in await refusal(made(folder))
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in await refusal(made(folder))


async def test_weights_of_a_voice_that_cannot_be_used(voice: Loaded, tmp_path: Path) -> None:
    def made(folder: Path, **voices: str) -> PiperRunner:
        return PiperRunner(load_spec("piper", folder, voices=voices))

    assert "there are no weights at" in await refusal(made(tmp_path / "none"))
    assert "has no voice" in await refusal(made(tmp_path))
    assert "options.voices.alloy names the voice nobody" in await refusal(made(voice.weights, alloy="nobody"))
    (tmp_path / "a.onnx").write_bytes(b"no voice at all")
    assert "a.onnx.json" in await refusal(made(tmp_path))
    described = json.loads((voice.weights / f"{VOICE}.onnx.json").read_text())
    (tmp_path / "a.onnx.json").write_text(json.dumps(described))
    assert "a.onnx cannot be loaded" in await refusal(made(tmp_path))
    (tmp_path / "a.onnx.json").write_text(json.dumps({**described, "phoneme_type": "pinyin"}))
    assert "phonemes are of type pinyin" in await refusal(made(tmp_path))
