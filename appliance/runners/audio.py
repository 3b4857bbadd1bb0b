"""Sound in files: read as numbers, and written, by PyAV, which brings FFmpeg's libraries along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from appliance.errors import PredictionFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av import AudioFrame
    from av.container import InputContainer

    Samples = npt.NDArray[np.float32]

#: A playlist may name other files and addresses; no protocol is called "none", so none of them is opened.
_CLOSED: Final = {"protocol_whitelist": "none"}
#: NumPy's names of FFmpeg's forms of samples that are not integers.
_FLOATS: Final = {"flt": "float32", "dbl": "float64"}


class Format(NamedTuple):
    """How sound is written."""

    container: str
    codec: str
    rates: tuple[int, ...] = ()  # samples/s that the codec takes, rising; none: any
    bits: int | None = None  # a second, where that is to be said


#: What files can be written as; the names are also their suffixes.
FORMATS: Final[dict[str, Format]] = {
    "wav": Format("wav", "pcm_s16le"),
    "mp3": Format(
        "mp3", "libmp3lame", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), 64_000
    ),
    "flac": Format("flac", "flac"),
    "opus": Format("ogg", "libopus", (8000, 12000, 16000, 24000, 48000)),
}


def read(path: Path, rate: int, field: str, *, longest: float) -> Samples:
    """Return the first sound track of a file or film, mixed to one channel of ``rate`` samples/s.

    Every sample is a number from -1 to 1: a sample that is no number is silent, and louder ones are clipped.

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
    except (av.FFmpegError, ValueError) as error:  # the latter from PyAV's own checks
        reason = getattr(error, "strerror", None) or error
        raise PredictionFailed(f"input.{field}: this is no sound that can be read: {reason}") from error
    sound: Samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not sound.size:
        raise PredictionFailed(f"input.{field}: there is no sound in this file")
    return sound


def _decoded(container: InputContainer) -> Iterator[AudioFrame]:
    """The frames of the first sound track; packets that are damaged are left out."""
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
    """``frames``, for ``longest`` seconds.

    Raises:
        PredictionFailed: there are more.
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
    """Have every sample of a frame between -1 and 1; a resampler would spread one NaN over its neighbours."""
    import numpy as np

    kind = _FLOATS.get(frame.format.packed.name)
    for plane in frame.planes if kind is not None else ():
        samples = np.frombuffer(plane, kind)
        np.nan_to_num(samples, copy=False, nan=0.0)
        np.clip(samples, -1.0, 1.0, out=samples)


def _resampled(frames: Iterator[AudioFrame], rate: int) -> Iterator[AudioFrame]:
    """``frames`` as one channel of 32-bit integers.

    Integers, because only there FFmpeg mixes channels so that the mix is no louder than they are. A resampler
    takes frames of one form; in joined files the form changes midway, and another resampler goes on.
    """
    import av

    form: tuple[str, str, int] | None = None
    resampler: av.AudioResampler | None = None
    for frame in frames:
        frame.pts = None  # times are counted from what is there
        now = frame.format.name, frame.layout.name, frame.sample_rate
        if resampler is None or now != form:
            if resampler is not None:
                yield from resampler.resample(None)
            form, resampler = now, av.AudioResampler(format="s32", layout="mono", rate=rate)
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


def write(path: Path, samples: Samples, rate: int) -> None:
    """Write one channel of sound, ``rate`` samples/s between -1 and 1, in the format of the path's suffix.

    Samples that are no numbers are written as silence, and louder ones are clipped.
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
