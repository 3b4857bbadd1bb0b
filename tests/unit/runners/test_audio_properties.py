"""Any audio, in any container and codec, whole or damaged, is read right or refused in one clear message."""

from __future__ import annotations

import functools
import io
from typing import Final

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.domain.errors import PredictionFailed
from appliance.runners import audio

_RATE: Final = 16_000
_SECONDS: Final = 1.0
#: container, codec, and the rates that both take
_CODECS: Final = (
    ("wav", "pcm_u8", (8_000, 44_100)),
    ("wav", "pcm_s16le", (8_000, 44_100)),
    ("wav", "pcm_s24le", (16_000, 96_000)),
    ("wav", "pcm_f32le", (16_000, 48_000)),
    ("wav", "pcm_f64le", (16_000, 48_000)),
    ("aiff", "pcm_s16be", (22_050, 44_100)),
    ("mp3", "libmp3lame", (16_000, 44_100)),
    ("flac", "flac", (16_000, 48_000)),
    ("ogg", "libopus", (24_000, 48_000)),
    ("adts", "aac", (16_000, 48_000)),
    ("ipod", "alac", (16_000, 44_100)),
    ("mov", "aac", (32_000, 48_000)),
    ("matroska", "libopus", (48_000,)),
    ("mpegts", "aac", (44_100,)),
)
_LAYOUTS: Final = {"mono": 1, "stereo": 2, "5.1": 6}
_DAMAGES: Final = ("none", "cut", "zeros", "noise", "junk before", "junk after", "twice")


@functools.cache
def encoded(container: str, codec: str, rate: int, layout: str) -> bytes:
    """A tone of 440 Hz at half of full scale, the same in all channels."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(_SECONDS * rate)) / rate).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream = made.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        whole = av.AudioFrame.from_ndarray(np.stack([tone] * _LAYOUTS[layout]), format="fltp", layout=layout)
        whole.sample_rate = rate
        for frame in (whole, None):
            made.mux(stream.encode(frame))
    return file.getvalue()


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, bytes]:
    """The damage, and the file content."""
    container, codec, rates = draw(st.sampled_from(_CODECS))
    layouts = [name for name in _LAYOUTS if name != "5.1" or codec not in {"libmp3lame", "libopus"}]
    content = encoded(container, codec, draw(st.sampled_from(rates)), draw(st.sampled_from(layouts)))
    damage = draw(st.sampled_from(_DAMAGES))
    at, more = draw(st.integers(0, len(content) - 1)), draw(st.binary(min_size=1, max_size=64))
    match damage:
        case "cut":
            content = content[:at]
        case "zeros":
            content = content[:at] + bytes(min(400, len(content) - at)) + content[at + 400 :]
        case "noise":
            content = content[:at] + more + content[at + len(more) :]
        case "junk before":
            content = more + content
        case "junk after":
            content += more
        case "twice":
            content += content
    return damage, content


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_audio_is_read_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, bytes]
) -> None:
    damage, content = case
    file = tmp_path_factory.getbasetemp() / "sound"
    file.write_bytes(content)
    try:
        read = audio.read(file, _RATE, "audio", longest=60)
    except PredictionFailed as refused:
        assert damage not in {"none", "junk after", "twice"}, refused
        assert str(refused).startswith("input.audio: this ")
        assert "\n" not in str(refused)
        return
    assert read.dtype == np.float32
    assert np.isfinite(read).all()
    assert np.abs(read).max() <= 1
    if damage in {"none", "junk after"}:
        assert read.size / _RATE == pytest.approx(_SECONDS, abs=0.15)
        middle = read[_RATE // 4 : 3 * _RATE // 4]
        assert np.abs(np.fft.rfft(middle)).argmax() * 2 == pytest.approx(440, abs=4)
        assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, abs=0.1)


#: Values that float files may hold; the samples around them must not change.
_STRANGE: Final = (np.nan, np.inf, -np.inf, 1e30, -2.0, 32767.0)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    double=st.booleans(),
    values=st.dictionaries(st.integers(1_000, 7_000), st.sampled_from(_STRANGE), max_size=8),
)
def test_strange_samples_change_nothing_but_themselves(
    tmp_path_factory: pytest.TempPathFactory, double: bool, values: dict[int, float]
) -> None:
    content = encoded("wav", "pcm_f64le" if double else "pcm_f32le", _RATE, "mono")
    samples = np.frombuffer(content[-int(_RATE * (8 if double else 4)) :], "<f8" if double else "<f4").copy()
    wanted = samples.copy()
    for at, value in values.items():
        samples[at] = value
        wanted[at] = np.clip(np.nan_to_num(value, nan=0.0), -1, 1)
    file = tmp_path_factory.getbasetemp() / "strange.wav"
    file.write_bytes(content[: -samples.nbytes] + samples.tobytes())
    assert np.abs(audio.read(file, _RATE, "audio", longest=60) - wanted).max() < 0.001
