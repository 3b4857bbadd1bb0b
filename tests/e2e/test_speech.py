"""The default voice, the default recogniser and a model of kind `transformers`, by the official client."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError

from tests.e2e.test_conformance_predictions import create, ended, get
from tests.support.appliance_process import wait_for
from tests.support.runner_calls import word_error_rate

pytestmark = pytest.mark.e2e

VOICE = "appliance/piper-joe"
EAR = "appliance/whisper-tiny-en"
SENTENCE = "The weather in the mountains was cold, but the sun was shining. Everyone wore a warm coat."
STEADY = {"noise_scale": 0, "noise_w": 0}  # the same sound every time


@pytest.fixture(scope="module")
def spoken(appliance: Any) -> str:
    """The address of the sentence, as the voice says it."""
    with appliance.client() as client:
        record = ended(client, create(client, VOICE, text=SENTENCE, **STEADY))
    assert record["status"] == "succeeded", record
    return str(record["output"])


def run(official: Client, model: str, **input: Any) -> Any:
    """What the official client makes of it."""
    return official.run(model, input=input)


def sound(api: httpx.Client, url: str) -> bytes:
    """What is at an output's address, which needs no token."""
    reply = api.get(url)
    assert reply.status_code == 200
    return reply.content


def seconds(content: bytes) -> float:
    with av.open(io.BytesIO(content)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        return float(samples / container.streams.audio[0].rate)


def test_what_the_voice_says_comes_back_from_the_recogniser(official: Client, spoken: str) -> None:
    heard = run(official, EAR, audio=spoken)
    rate = word_error_rate(SENTENCE, heard["transcription"])
    print(f"word error rate {rate:.3f}: {heard['transcription']}")
    assert rate < 0.2
    assert heard["detected_language"] == "english"


def test_l9_subtitles_are_subtitles(official: Client, spoken: str) -> None:
    time = r"(\d\d):(\d\d):(\d\d)([,.])(\d\d\d)"
    for form, point in (("srt", ","), ("vtt", ".")):
        heard = run(official, EAR, audio=spoken, transcription=form)
        text = heard["transcription"]
        assert text.startswith("1\n" if form == "srt" else "WEBVTT\n\n")
        cues = re.findall(rf"{time} --> {time}\n(.+)\n\n", text)
        assert len(cues) == len(heard["segments"]) > 0
        assert all(cue[3] == cue[8] == point for cue in cues)
        times = [
            int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, _, ms in re.findall(time, text)
        ]
        assert times == sorted(times)
        assert word_error_rate(SENTENCE, " ".join(cue[-1] for cue in cues)) < 0.2


def test_a_file_of_the_callers_by_the_hosted_models_name(
    official: Client, api: httpx.Client, spoken: str, tmp_path: Path
) -> None:
    file = tmp_path / "sentence.wav"
    file.write_bytes(sound(api, spoken))
    with file.open("rb") as opened:
        heard = run(official, "openai/whisper", audio=opened, word_timestamps=True)
    words = [word for segment in heard["segments"] for word in segment["words"]]
    times = [at for word in words for at in (word["start"], word["end"])]
    assert times == sorted(times)
    assert len(words) == pytest.approx(len(SENTENCE.split()), abs=2)


def test_an_mp3_is_one_and_as_long_as_the_wav(official: Client, api: httpx.Client, spoken: str) -> None:
    asked = {"text": SENTENCE, "output_format": "mp3", "voice": "af_bella", **STEADY}
    made = run(official, "jaaari/kokoro-82m", **asked)
    reply = api.get(str(made))
    assert reply.headers["content-type"] == "audio/mpeg"
    with av.open(io.BytesIO(reply.content)) as container:
        assert container.format.name == "mp3"
    assert seconds(reply.content) == pytest.approx(seconds(sound(api, spoken)), abs=0.2)
    heard = run(official, EAR, audio=str(made))
    assert word_error_rate(SENTENCE, heard["transcription"]) < 0.2


def test_progress_is_found_in_the_logs(official: Client, spoken: str) -> None:
    for model, input in ((VOICE, {"text": "One. Two."}), (EAR, {"audio": spoken})):
        prediction = official.predictions.create(model=model, input=input)
        prediction.wait()
        assert prediction.status == "succeeded"
        assert prediction.progress is not None
        assert prediction.progress.percentage == 1
        assert prediction.metrics is not None
        assert prediction.metrics["audio_duration"] > 0


def test_what_is_refused_and_that_the_models_go_on(official: Client, api: httpx.Client, spoken: str) -> None:
    with pytest.raises(ModelError, match=r"input\.audio: this (audio cannot|file has no audio)"):
        run(official, EAR, audio=io.BytesIO(b"This is a text. " * 500))
    with pytest.raises(ModelError, match=r"input\.language: .* only English"):
        run(official, EAR, audio=spoken, language="de")
    empty = api.post("/v1/predictions", json={"version": VOICE, "input": {"text": ""}})
    assert (empty.status_code, empty.json()["invalid_fields"][0]["field"]) == (422, "input.text")
    unknown = api.post("/v1/predictions", json={"version": VOICE, "input": {"text": "Hi", "voice": "nobody"}})
    assert unknown.status_code == 422
    assert "en_US-joe-medium" in unknown.json()["detail"]
    assert run(official, EAR, audio=spoken)["segments"]
    assert run(official, VOICE, text="Hi.")


def test_a_long_text_is_cancelled_between_sentences(api: httpx.Client) -> None:
    record = create(api, VOICE, text="This is one of many sentences. " * 2000)
    wait_for(lambda: "1/2000" in get(api, record)["logs"], "the first sentence")
    assert api.post(f"/v1/predictions/{record['id']}/cancel").status_code == 200
    assert ended(api, record)["status"] == "canceled"
    after = ended(api, create(api, VOICE, text="Hi."))
    assert after["status"] == "succeeded"


@pytest.mark.models("tasks")
def test_a_model_of_kind_transformers(official: Client, api: httpx.Client) -> None:
    for colour in ("red", "blue"):
        picture = io.BytesIO()
        Image.new("RGB", (48, 32), colour).save(picture, format="PNG")
        picture.seek(0)
        found = run(official, "test/colours", image=picture, top_k=1)
        assert [part["label"] for part in found] == [colour]
    wrong = ended(api, create(api, "test/colours", image="data:text/plain,hello"))
    assert (wrong["status"], "input.image: this is not an image" in wrong["error"]) == ("failed", True)
