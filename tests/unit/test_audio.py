"""Sound written and read back."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from appliance.errors import PredictionFailed
from appliance.runners import audio


def tone(seconds: float, rate: int, hertz: float = 440.0) -> audio.Samples:
    samples: audio.Samples = (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )
    return samples


def pitch(samples: audio.Samples, rate: int) -> float:
    """The loudest frequency, in hertz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / samples.size)


@pytest.mark.parametrize("rate", [16_000, 20_000, 22_050, 44_100])
@pytest.mark.parametrize("form", audio.FORMATS)
def test_what_is_written_is_read_back(tmp_path: Path, form: str, rate: int) -> None:
    file = tmp_path / f"tone.{form}"
    audio.write(file, tone(1.5, rate), rate)
    read = audio.read(file, 16_000, "audio", longest=10)
    assert read.dtype == np.float32
    assert read.size / 16_000 == pytest.approx(1.5, abs=0.05)
    assert pitch(read, 16_000) == pytest.approx(440, abs=2)
    assert np.abs(read).max() == pytest.approx(0.5, abs=0.1)


def test_what_is_too_loud_is_clipped(tmp_path: Path) -> None:
    audio.write(tmp_path / "loud.wav", 4 * tone(0.5, 16_000), 16_000)
    read = audio.read(tmp_path / "loud.wav", 16_000, "audio", longest=10)
    assert np.abs(read).max() == pytest.approx(1, abs=0.01)


def test_channels_are_mixed(tmp_path: Path) -> None:
    file = tmp_path / "stereo.wav"
    left = tone(1, 16_000)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        both = (np.stack([left, np.zeros_like(left)]) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(both, format="s16p", layout="stereo")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    read = audio.read(file, 16_000, "audio", longest=10)
    assert read.size == 16_000
    assert pitch(read, 16_000) == pytest.approx(440, abs=2)


def test_what_is_longer_than_accepted(tmp_path: Path) -> None:
    audio.write(tmp_path / "long.wav", tone(3, 16_000), 16_000)
    with pytest.raises(PredictionFailed, match=r"^input\.sound: this is longer than 2 s"):
        audio.read(tmp_path / "long.wav", 16_000, "sound", longest=2)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    audio.write(tmp_path / "other.wav", tone(1, 16_000), 16_000)
    playlist = tmp_path / "list"
    playlist.write_text("ffconcat version 1.0\nfile other.wav\n")
    with av.open(str(playlist)) as container:
        assert container.format.name == "concat", "it would, if it might"
    with pytest.raises(PredictionFailed, match=r"^input\.audio: this is no sound"):
        audio.read(playlist, 16_000, "audio", longest=10)


def test_a_damaged_middle_does_not_lose_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "tone.mp3"
    audio.write(file, tone(5, 16_000), 16_000)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    file.write_bytes(content)
    assert audio.read(file, 16_000, "audio", longest=10).size / 16_000 == pytest.approx(5, abs=0.5)
