"""Audio files, written and read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners import audio


def tone(seconds: float, rate: int, hertz: float = 440.0) -> audio.Samples:
    samples: audio.Samples = (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )
    return samples


def pitch(samples: audio.Samples, rate: int) -> float:
    """The loudest frequency, in hertz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / samples.size)


def read_back(file: Path) -> audio.Samples:
    """The samples of a file, 16,000 per second."""
    if file.suffix == ".pcm":  # which does not say what it is
        raw = np.frombuffer(file.read_bytes(), np.int16).astype(np.float32) / np.float32(2**15)
        file = encoded(file.with_suffix(".wav"), "pcm_f32le", raw, 24_000)
    return audio.read(file, 16_000, "audio", longest=10)


@pytest.mark.parametrize("rate", [16_000, 20_000, 22_050, 44_100])
@pytest.mark.parametrize("form", audio.FORMATS)
def test_written_audio_is_read_back(tmp_path: Path, form: str, rate: int) -> None:
    file = tmp_path / f"tone.{form}"
    audio.write(file, tone(1.5, rate), rate)
    read = read_back(file)
    assert read.dtype == np.float32
    assert read.size / 16_000 == pytest.approx(1.5, abs=0.13)  # AAC begins with silence
    assert pitch(read, 16_000) == pytest.approx(440, abs=2)
    assert np.percentile(np.abs(read), 99) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("form", audio.WITH_HEADER)
def test_two_channels_are_written(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"tone.{form}"
    audio.write(file, np.stack([tone(1.5, 24_000, 440), tone(1.5, 24_000, 880)]), 24_000)
    with av.open(str(file)) as container:
        assert container.streams.audio[0].channels == 2
        planar = av.AudioResampler(format="fltp", layout="stereo", rate=24_000)
        frames = [each for frame in container.decode(audio=0) for each in planar.resample(frame)]
        left, right = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    assert left.size / 24_000 == pytest.approx(1.5, abs=0.13)
    assert (pitch(left, 24_000), pitch(right, 24_000)) == pytest.approx((440, 880), abs=2)


@pytest.mark.parametrize("form", audio.FORMATS)
def test_a_stream_is_a_file_whose_beginning_comes_first(tmp_path: Path, form: str) -> None:
    whole = tone(3, 22_050)
    asked: list[int] = []

    def parts() -> Iterator[audio.Samples]:
        for number in range(3):
            asked.append(number)
            yield whole[number * 22_050 : (number + 1) * 22_050]

    stream = audio.encoded(parts(), 22_050, form)
    first = next(stream)
    assert first
    assert asked[-1] < 2, "the first bytes come before the last part is made"
    file = tmp_path / f"tone.{form}"
    file.write_bytes(first + b"".join(stream))
    read = read_back(file)
    assert read.size / 16_000 == pytest.approx(3, abs=0.08)
    assert pitch(read, 16_000) == pytest.approx(440, abs=2)


def test_loud_samples_are_clipped_when_written(tmp_path: Path) -> None:
    audio.write(tmp_path / "loud.wav", 4 * tone(0.5, 16_000), 16_000)
    read = audio.read(tmp_path / "loud.wav", 16_000, "audio", longest=10)
    assert np.abs(read).max() == pytest.approx(1, abs=0.01)


def encoded(file: Path, codec: str, samples: audio.Samples, rate: int, channels: int = 1) -> Path:
    """The same ``samples`` on each channel of a file."""
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        made = av.AudioFrame.from_ndarray(np.stack([samples] * channels), format="fltp", layout=layout)
        made.sample_rate = rate
        for frame in (made, None):
            container.mux(stream.encode(frame))
    return file


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_nan_and_infinity_leave_other_samples_as_they_are(tmp_path: Path, codec: str, rate: int) -> None:
    kind = "<f4" if codec == "pcm_f32le" else "<f8"
    sound = tone(1, rate).astype(kind)
    broken = {rate // 4: np.nan, rate // 3: np.inf, rate // 2: -np.inf, 3 * rate // 4: 1e30}
    for at, value in broken.items():
        sound[at] = value
    # FFmpeg would refuse some of these values when it encodes them; a WAV file is a header and the samples
    header = encoded(tmp_path / "header.wav", codec, tone(1, rate), rate).read_bytes()
    (tmp_path / "broken.wav").write_bytes(header[: -sound.nbytes] + sound.tobytes())
    read = audio.read(tmp_path / "broken.wav", 16_000, "audio", longest=10)
    assert np.isfinite(read).all()
    assert np.abs(read).max() <= 1
    far = np.ones(read.size, bool)
    for at in broken:
        middle = at * 16_000 // rate
        far[middle - 40 : middle + 40] = False
    assert np.abs(read - tone(1, 16_000))[far][100:-100].max() < 0.01


def test_loud_samples_are_clipped_when_read(tmp_path: Path) -> None:
    encoded(tmp_path / "loud.wav", "pcm_f32le", 8 * tone(1, 16_000), 16_000)
    read = audio.read(tmp_path / "loud.wav", 16_000, "audio", longest=10)
    assert np.abs(read - np.clip(8 * tone(1, 16_000), -1, 1)).max() < 0.001


def test_a_mix_is_no_louder_than_its_channels(tmp_path: Path) -> None:
    encoded(tmp_path / "stereo.wav", "pcm_f32le", 2 * tone(1, 16_000), 16_000, channels=2)
    read = audio.read(tmp_path / "stereo.wav", 16_000, "audio", longest=10)
    assert np.abs(read - 2 * tone(1, 16_000)).max() < 0.001


@pytest.mark.parametrize(("form", "codec"), [("mp3", "libmp3lame"), ("aac", "aac"), ("ts", "aac")])
def test_concatenated_files_are_read_to_the_end(tmp_path: Path, form: str, codec: str) -> None:
    first = encoded(tmp_path / f"first.{form}", codec, tone(1, 48_000, 440), 48_000, channels=2)
    second = encoded(tmp_path / f"second.{form}", codec, tone(2, 24_000, 880), 24_000)
    joined = tmp_path / f"joined.{form}"
    joined.write_bytes(first.read_bytes() + second.read_bytes() + first.read_bytes())
    read = audio.read(joined, 16_000, "audio", longest=10)
    assert read.size / 16_000 == pytest.approx(4, abs=0.3)
    assert pitch(read[2_000:14_000], 16_000) == pytest.approx(440, abs=2)
    assert pitch(read[20_000:44_000], 16_000) == pytest.approx(880, abs=2)
    assert pitch(read[-14_000:-4_000], 16_000) == pytest.approx(440, abs=2)


def test_nan_samples_are_written_as_silence(tmp_path: Path) -> None:
    made = tone(1, 16_000)
    made[8_000] = np.nan
    audio.write(tmp_path / "made.wav", made, 16_000)
    read = audio.read(tmp_path / "made.wav", 16_000, "audio", longest=10)
    assert read[8_000] == 0
    assert np.abs(read - np.nan_to_num(tone(1, 16_000)))[:8_000].max() < 0.001


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


def test_audio_that_is_too_long_is_refused(tmp_path: Path) -> None:
    audio.write(tmp_path / "long.wav", tone(3, 16_000), 16_000)
    with pytest.raises(PredictionFailed, match=r"^input\.sound: this audio is longer than 2 s"):
        audio.read(tmp_path / "long.wav", 16_000, "sound", longest=2)


def test_the_length_of_audio_is_in_seconds_at_any_sample_rate(tmp_path: Path) -> None:
    encoded(tmp_path / "slow.wav", "pcm_s16le", tone(1, 4_000), 1)  # 4,000 samples, one a second
    with pytest.raises(PredictionFailed, match=r"^input\.audio: this audio is longer than 60 s"):
        audio.read(tmp_path / "slow.wav", 16_000, "audio", longest=60)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    audio.write(tmp_path / "other.wav", tone(1, 16_000), 16_000)
    playlist = tmp_path / "list"
    playlist.write_text("ffconcat version 1.0\nfile other.wav\n")
    with av.open(str(playlist)) as container:
        assert container.format.name == "concat", "FFmpeg would open the other file by default"
    with pytest.raises(PredictionFailed, match=r"^input\.audio: this audio cannot be decoded"):
        audio.read(playlist, 16_000, "audio", longest=10)


def test_a_damaged_middle_does_not_lose_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "tone.mp3"
    audio.write(file, tone(5, 16_000), 16_000)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    file.write_bytes(content)
    assert audio.read(file, 16_000, "audio", longest=10).size / 16_000 == pytest.approx(5, abs=0.5)
