"""Sound in files: read as numbers, and written, by PyAV, which brings FFmpeg's libraries along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from appliance.domain.errors import PredictionFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av import AudioFrame
    from av.container import InputContainer

    Samples = npt.NDArray[np.float32]

#: A playlist may name other files and addresses; no protocol is called "none", so none of them is opened.
_CLOSED: Final = {"protocol_whitelist": "none"}
#: FFmpeg's floating-point sample formats -> NumPy's names.
_FLOATS: Final = {"flt": "float32", "dbl": "float64"}


class AudioFormat(NamedTuple):
    """How sound is written."""

    container: str
    codec: str
    rates: tuple[int, ...] = ()  # samples/s that the codec takes, rising; none: any
    bits: int | None = None  # a second, where that is to be said


#: What files can be written as; the names are also their suffixes.
FORMATS: Final[dict[str, AudioFormat]] = {
    "wav": AudioFormat("wav", "pcm_s16le"),
    "mp3": AudioFormat(
        "mp3", "libmp3lame", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), 64_000
    ),
    "flac": AudioFormat("flac", "flac"),
    "opus": AudioFormat("ogg", "libopus", (8000, 12000, 16000, 24000, 48000)),
}


def read(path: Path, rate: int, field: str, *, longest: float) -> Samples:
    """Return the first audio track of an audio or video file, mixed to one channel of ``rate`` samples/s.

    Every sample is from -1 to 1: NaN samples become 0, and samples outside the range are clipped.

    Args:
        path: the file; whatever it says of itself, nothing but this file is read.
        rate: samples/s of what is returned.
        field: the input that the file came in, for messages.
        longest: seconds of sound that are accepted.

    Raises:
        PredictionFailed: it is no sound, has none, or too much of it.
    """
    import av
    import numpy as np

    pieces: list[Samples] = []
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="ignore", options=_CLOSED) as container:
            if not container.streams.audio:
                raise PredictionFailed(f"input.{field}: there is no sound in this file")
            for frame in _resampled(_limited(_decoded(container), longest, field), rate):
                pieces.append(frame.to_ndarray()[0].astype(np.float32) / np.float32(2**31))
    except (av.FFmpegError, ValueError) as error:  # ValueError comes from PyAV's own checks
        reason = getattr(error, "strerror", None) or error
        raise PredictionFailed(f"input.{field}: this is no sound that can be read: {reason}") from error
    sound: Samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not sound.size:
        raise PredictionFailed(f"input.{field}: there is no sound in this file")
    return sound


def _decoded(container: InputContainer) -> Iterator[AudioFrame]:
    """The frames of the first audio track, without damaged packets."""
    import av

    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            assert isinstance(frame, av.AudioFrame), "the stream is one of sound"
            _clean(frame)
            yield frame


def _limited(frames: Iterator[AudioFrame], longest: float, field: str) -> Iterator[AudioFrame]:
    """Yield ``frames``, up to ``longest`` seconds.

    Raises:
        PredictionFailed: the audio is longer.
    """
    seconds = 0.0
    for frame in frames:
        seconds += frame.samples / frame.sample_rate
        if seconds > longest:
            raise PredictionFailed(
                f"input.{field}: this is longer than {longest:g} s, the most that is accepted here"
            )
        yield frame


def _clean(frame: AudioFrame) -> None:
    """Clip the samples of a frame to -1 to 1 and zero NaNs, which a resampler would spread."""
    import numpy as np

    kind = _FLOATS.get(frame.format.packed.name)
    for plane in frame.planes if kind is not None else ():
        samples = np.frombuffer(plane, kind)
        np.nan_to_num(samples, copy=False, nan=0.0)
        np.clip(samples, -1.0, 1.0, out=samples)


def _resampled(frames: Iterator[AudioFrame], rate: int) -> Iterator[AudioFrame]:
    """``frames`` as one channel of 32-bit integers.

    Integers, because only with them FFmpeg's mix of channels is no louder than the channels. A
    resampler accepts one frame format. If the format changes midway, as in joined files, a new one is made.
    """
    import av

    form: tuple[str, str, int] | None = None
    resampler: av.AudioResampler | None = None
    for frame in frames:
        frame.pts = None  # times are counted from the frames that exist
        now = frame.format.name, frame.layout.name, frame.sample_rate
        if resampler is None or now != form:
            if resampler is not None:
                yield from resampler.resample(None)
            form, resampler = now, av.AudioResampler(format="s32", layout="mono", rate=rate)
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


def write(path: Path, samples: Samples, rate: int) -> None:
    """Write one channel of audio, ``rate`` samples/s between -1 and 1, in the format of the path's suffix.

    NaN samples are written as silence, and samples outside the range are clipped.
    """
    import av
    import numpy as np

    form = FORMATS[path.suffix.removeprefix(".")]
    written = next((known for known in form.rates if known >= rate), form.rates[-1]) if form.rates else rate
    whole = (np.clip(np.nan_to_num(samples), -1.0, 1.0) * 32767.0).astype(np.int16)
    with av.open(str(path), "w", format=form.container) as container:
        stream = container.add_stream(form.codec, rate=written, layout="mono")
        assert isinstance(stream, av.AudioStream), "all formats are of sound"
        if form.bits is not None:
            stream.bit_rate = form.bits
        for at in range(0, whole.size, rate):
            frame = av.AudioFrame.from_ndarray(whole[None, at : at + rate], format="s16", layout="mono")
            frame.sample_rate = rate
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
