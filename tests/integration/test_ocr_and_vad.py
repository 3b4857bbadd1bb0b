"""Kinds `ocr`, `vad` and `onnx` with the real weights that docs/models/tasks.md names."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import yaml
from PIL import Image, ImageDraw, ImageFont

from appliance import weights
from appliance.config import Config
from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio
from appliance.runners.ocr.runner import OcrRunner
from appliance.runners.onnx.options import OnnxOptions
from appliance.runners.onnx.runner import OnnxRunner
from appliance.runners.piper.runner import PiperRunner
from appliance.runners.vad.runner import VadRunner
from appliance.runners.whisper.runner import WhisperRunner
from tests.integration.test_speech import LANGUAGES, STEADY, VOICE, Loaded, fetched
from tests.support.appliance_process import ROOT, WEIGHTS
from tests.support.runner_calls import job, load_spec, run, word_error_rate

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

PAGE = ROOT / "docs/models/tasks.md"
RATE = 16_000


async def loaded(runner: type[OcrRunner | VadRunner], kind: str) -> Loaded:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (entry,) = (
        model for block in blocks for model in yaml.safe_load(block)["models"] if model["kind"] == kind
    )
    (model,) = Config.model_validate({"models": [entry]}).models
    folder = weights.pull(WEIGHTS, model)
    options = model.options.model_dump(mode="json")
    made = runner(load_spec(kind, folder, **options))
    await made.setup()
    return Loaded(made, made.interface(options), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader() -> AsyncIterator[Loaded]:
    yield await loaded(OcrRunner, "ocr")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Loaded]:
    yield await loaded(VadRunner, "vad")


# -- text in images

LINES = {
    (20, 20): "Invoice 2024-0815",
    (450, 22): "Total: 47.11 EUR",
    (20, 120): "The quick brown fox jumps over the lazy dog.",
    (20, 220): "Signed by A. Turing",
}
TEXT = "Invoice 2024-0815 Total: 47.11 EUR\nThe quick brown fox jumps over the lazy dog.\nSigned by A. Turing"


@pytest.fixture
def page() -> Image.Image:
    """A page with the texts of ``LINES`` at their places."""
    image = Image.new("RGB", (700, 300), "white")
    font = ImageFont.load_default(28)
    for place, text in LINES.items():
        ImageDraw.Draw(image).text(place, text, font=font, fill=(20, 20, 60))
    return image


def saved(image: Image.Image, folder: Path) -> Path:
    image.save(folder / "page.png")
    return folder / "page.png"


async def test_the_text_of_a_page_is_read_in_its_order(
    reader: Loaded, page: Image.Image, tmp_path: Path
) -> None:
    read = (await reader(tmp_path, image=saved(page, tmp_path))).output
    assert read["text"] == TEXT
    assert [line["text"] for line in read["lines"]] == list(LINES.values())
    for (left, top), line in zip(LINES, read["lines"], strict=True):
        assert line["score"] > 0.9
        corners = np.array(line["box"])
        assert corners.min(axis=0) == pytest.approx([left, top], abs=12)
        width, height = corners.max(axis=0) - corners.min(axis=0)
        assert 20 < height < 50
        assert width == pytest.approx(14 * len(line["text"]), rel=0.3)


@pytest.mark.parametrize("angle", [8, 90, 180])
async def test_turned_text_is_read(reader: Loaded, page: Image.Image, tmp_path: Path, angle: int) -> None:
    turned = page.rotate(angle, expand=True, fillcolor="white")
    read = (await reader(tmp_path, image=saved(turned, tmp_path))).output
    assert {line["text"] for line in read["lines"]} == set(LINES.values())


async def test_one_thin_line_and_light_text(reader: Loaded, tmp_path: Path) -> None:
    image = Image.new("RGB", (900, 40), "black")
    font = ImageFont.load_default(28)
    ImageDraw.Draw(image).text((5, 4), "one thin line of white text in the dark", font=font, fill="white")
    read = (await reader(tmp_path, image=saved(image, tmp_path))).output
    assert read["text"] == "one thin line of white text in the dark"


@pytest.mark.parametrize("size", [(1, 1), (300, 200), (4000, 3)])
async def test_an_image_without_text(reader: Loaded, tmp_path: Path, size: tuple[int, int]) -> None:
    read = (await reader(tmp_path, image=saved(Image.new("RGB", size, "white"), tmp_path))).output
    assert read == {"text": "", "lines": []}


async def test_a_score_can_be_demanded(reader: Loaded, page: Image.Image, tmp_path: Path) -> None:
    read = (await reader(tmp_path, image=saved(page, tmp_path), min_score=1.0)).output
    assert read == {"text": "", "lines": []}
    (tmp_path / "text.txt").write_text("no image")
    with pytest.raises(PredictionFailed, match=r"input\.image: this is not an image"):
        await reader(tmp_path, image=tmp_path / "text.txt")


# -- the same files with kind `onnx`


async def described(file: Path, options: dict[str, Any]) -> Loaded:
    complete = OnnxOptions.model_validate(options).model_dump(mode="json")
    runner = OnnxRunner(load_spec("onnx", file, **complete))
    await runner.setup()
    return Loaded(runner, runner.interface(complete), file)


async def test_a_classifier_tells_which_way_text_is_turned(
    reader: Loaded, page: Image.Image, tmp_path: Path
) -> None:
    scaled: dict[str, Any] = {"mean": [0.5], "std": [0.5], "colour": "bgr", "width": 192, "height": 48}
    labels = {"type": "labels", "activation": "none", "names": ["upright", "upside down"], "top_k": 1}
    classifier = await described(
        next(reader.weights.rglob("*cls*.onnx")),
        {"inputs": {"image": {"type": "image", **scaled}}, "outputs": {"direction": labels}},
    )
    line = page.crop((20, 18, 160, 53))
    for angle, label in ((0, "upright"), (180, "upside down")):
        image = saved(line.rotate(angle), tmp_path)
        (found,) = (await classifier(tmp_path, image=image)).output
        assert found["label"] == label
        assert found["score"] > 0.9


async def test_a_detector_makes_a_mask_of_the_text(reader: Loaded, page: Image.Image, tmp_path: Path) -> None:
    scaled: dict[str, Any] = {"mean": [0.5], "std": [0.5], "colour": "bgr", "multiple_of": 32}
    detector = await described(
        next(reader.weights.rglob("*det*.onnx")),
        {
            "inputs": {"image": {"type": "image", **scaled}},
            "outputs": {"mask": {"type": "mask", "threshold": 0.3}},
        },
    )
    mask = Image.open((await detector(tmp_path, image=saved(page, tmp_path))).output)
    assert mask.size == page.size
    values = np.array(mask)
    assert set(np.unique(values)) == {0, 255}
    for left, top in LINES:
        assert (values[top + 12 : top + 20, left + 20 : left + 180] == 255).mean() > 0.6
    assert values[70:110].max() == 0, "there is no text between the lines"


# -- voice activity


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sentence(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """The samples of a spoken sentence."""
    options = {"voices": {}, "found": [VOICE]}
    voice = PiperRunner(load_spec("piper", fetched("piper"), **options))
    await voice.setup()
    folder = tmp_path_factory.mktemp("spoken")
    text = "Machines that listen should understand what other machines say."
    spoken = await run(voice, job(voice.interface(options), folder, text=text, **STEADY))
    samples = audio.read(spoken.output, RATE, "audio", longest=60)
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    yield samples[loud[0] : loud[-1]]


async def test_speech_is_found_between_silence_and_noise(
    detector: Loaded, sentence: Any, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).standard_normal(2 * RATE, dtype=np.float32) * np.float32(0.01)
    silence = np.zeros(3 * RATE, np.float32)
    audio.write(tmp_path / "a.wav", np.concatenate([silence, sentence, noise, sentence, silence]), RATE)
    ran = await detector(tmp_path, audio=tmp_path / "a.wav", min_silence=0.5)
    long = sentence.size / RATE
    starts, ends = zip(*((each["start"], each["end"]) for each in ran.output), strict=True)
    assert starts == pytest.approx((3, 5 + long), abs=0.4)
    assert ends == pytest.approx((3 + long, 5 + 2 * long), abs=0.4)
    assert ran.metrics["audio_duration"] == pytest.approx(8 + 2 * long, abs=0.01)


async def test_what_is_cut_out_is_what_was_said(detector: Loaded, sentence: Any, tmp_path: Path) -> None:
    """Times are those of the file, whatever its sampling rate and format."""

    silence = np.zeros(2 * RATE, np.float32)
    audio.write(tmp_path / "a.mp3", np.concatenate([silence, sentence, silence]), RATE)
    found = (await detector(tmp_path, audio=tmp_path / "a.mp3", min_silence=1.0, padding=0.2)).output
    assert len(found) == 1
    samples = audio.read(tmp_path / "a.mp3", RATE, "audio", longest=60)
    cut = samples[int(found[0]["start"] * RATE) : int(found[0]["end"] * RATE)]
    audio.write(tmp_path / "cut.wav", cut, RATE)
    ear = WhisperRunner(load_spec("whisper", fetched("whisper"), **LANGUAGES))
    await ear.setup()
    heard = await run(ear, job(ear.interface(LANGUAGES), tmp_path, audio=tmp_path / "cut.wav"))
    said = "Machines that listen should understand what other machines say."
    assert word_error_rate(said, heard.output["transcription"]) < 0.2


async def test_silence_and_tones_are_no_speech(detector: Loaded, tmp_path: Path) -> None:
    for samples in (np.zeros(RATE), 0.3 * np.sin(np.arange(5 * RATE) * 0.2), np.zeros(3)):
        audio.write(tmp_path / "a.wav", samples.astype(np.float32), RATE)
        assert (await detector(tmp_path, audio=tmp_path / "a.wav")).output == []


async def test_audio_that_is_too_long_and_other_weights(detector: Loaded, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.zeros(3 * RATE, np.float32), RATE)
    short = VadRunner(load_spec("vad", detector.weights, max_duration=2.0))
    await short.setup()
    with pytest.raises(PredictionFailed, match=r"input\.audio: this audio is longer than 2 s"):
        await run(short, job(detector.interface, tmp_path, audio=tmp_path / "a.wav"))
    voice = next(fetched("piper").rglob("*.onnx"))
    with pytest.raises(LoadFailed, match=r"model test/vad: .* is not Silero VAD, which has the inputs"):
        await VadRunner(load_spec("vad", voice, max_duration=2.0)).setup()
