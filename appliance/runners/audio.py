"""Reads and writes audio files with PyAV, which includes FFmpeg's libraries."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import PredictionFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av import AudioFrame
    from av.container import InputContainer

    Samples = npt.NDArray[np.float32]

#: Keeps FFmpeg from opening the files and URLs that a playlist names: no protocol is called "none".
ONE_FILE: Final = {"protocol_whitelist": "none"}
#: FFmpeg's floating-point sample formats -> NumPy's dtypes
_FLOATS: Final = {"flt": "float32", "dbl": "float64"}


class AudioFormat(NamedTuple):
    """Container, codec and limits of a format of output files."""

    container: str
    codec: str
    rates: tuple[int, ...] = ()  # samples/s that the codec supports, in ascending order; empty: any
    bit_rate: int | None = None  # bits/s; None: the codec's default


#: The formats of output files and of streams by their suffix.
FORMATS: Final[dict[str, AudioFormat]] = {
    "wav": AudioFormat("wav", "pcm_s16le"),
    "mp3": AudioFormat(
        "mp3", "libmp3lame", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), 64_000
    ),
    "flac": AudioFormat("flac", "flac"),
    "opus": AudioFormat("ogg", "libopus", (8000, 12000, 16000, 24000, 48000)),
    "aac": AudioFormat("adts", "aac", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    "pcm": AudioFormat("s16le", "pcm_s16le", (24000,)),  # without a header, as OpenAI's format of this name
}
#: Formats of files that say how many channels they have.
WITH_HEADER: Final = tuple(name for name in FORMATS if name != "pcm")


def read(path: Path, rate: int, field: str, *, longest: float) -> Samples:
    """Return the first audio track of an audio or video file, mixed to one channel of ``rate`` samples/s.

    Every sample is from -1 to 1: NaN samples become 0, and samples outside the range are clipped.

    Args:
        path: the file; no other file or URL is opened, even if this is a playlist.
        rate: samples/s of the result.
        field: name of the input with the file, for error messages.
        longest: maximum length in seconds.

    Raises:
        PredictionFailed: the file has no audio, cannot be decoded, or is too long.
    """
    import av
    import numpy as np

    parts: list[Samples] = []
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="ignore", options=ONE_FILE) as container:
            if not container.streams.audio:
                raise PredictionFailed(f"input.{field}: this file has no audio; send one with an audio track")
            for frame in _resampled(_decoded(container, longest, field), rate):
                parts.append(frame.to_ndarray()[0].astype(np.float32) / np.float32(2**31))
    except (av.FFmpegError, ValueError) as error:  # ValueError comes from PyAV's own checks
        reason = getattr(error, "strerror", None) or error
        raise PredictionFailed(f"input.{field}: this audio cannot be decoded: {reason}") from error
    samples: Samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not samples.size:
        raise PredictionFailed(f"input.{field}: this file has no audio; send one with an audio track")
    return samples


def _decoded(container: InputContainer, longest: float, field: str) -> Iterator[AudioFrame]:
    """Yield the frames of the first audio track, and skip damaged packets.

    Raises:
        PredictionFailed: the audio is longer than ``longest`` seconds.
    """
    import av

    seconds = 0.0
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            assert isinstance(frame, av.AudioFrame), "the stream has audio"
            seconds += frame.samples / frame.sample_rate
            if seconds > longest:
                raise PredictionFailed(f"input.{field}: this audio is longer than {longest:g} s; shorten it")
            _clean(frame)
            yield frame


def _clean(frame: AudioFrame) -> None:
    """Clip floating-point samples to -1 to 1, and set NaN to 0, because a resampler would spread NaN."""
    import numpy as np

    dtype = _FLOATS.get(frame.format.packed.name)
    for plane in frame.planes if dtype is not None else ():
        samples = np.frombuffer(plane, dtype)
        np.nan_to_num(samples, copy=False, nan=0.0)
        np.clip(samples, -1.0, 1.0, out=samples)


def _resampled(frames: Iterator[AudioFrame], rate: int) -> Iterator[AudioFrame]:
    """Convert ``frames`` to one channel of 32-bit integers.

    With floats, FFmpeg's mix of several channels could be louder than each channel. A resampler accepts only
    one frame format, so a new one is made where the format changes, as in concatenated files.
    """
    import av

    current: tuple[str, str, int] | None = None
    resampler: av.AudioResampler | None = None
    for frame in frames:
        frame.pts = None  # count time by samples, not by the file's timestamps
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if resampler is None or form != current:
            if resampler is not None:
                yield from resampler.resample(None)
            current, resampler = form, av.AudioResampler(format="s32", layout="mono", rate=rate)
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


def write(path: Path, samples: Samples, rate: int) -> None:
    """Write ``samples``, with ``rate`` samples/s, in the format of the path's suffix.

    ``samples`` are one channel, or have the shape (channels, samples) with one or two channels. Samples
    outside the range -1 to 1 are clipped, and NaN samples become silence.
    """
    with path.open("wb") as file:
        channels = 1 if samples.ndim == 1 else samples.shape[0]
        for _ in _encoded(file, [samples], rate, path.suffix.removeprefix("."), channels):
            pass


def encoded(parts: Iterable[Samples], rate: int, format: str) -> Generator[bytes, None, None]:
    """Yield the bytes of an audio file of one channel with ``parts``, as soon as each part is known.

    The header does not state the length of the file. Samples are treated as by ``write``.
    """
    sink = _Sink()
    for _ in _encoded(sink, parts, rate, format):
        if sink.written:
            yield sink.take()
    yield sink.take()


class _Sink:
    """A file that can only be written to, for FFmpeg, which then never seeks in it."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> int:
        self.written += data
        return len(data)

    def take(self) -> bytes:
        """Return the bytes written since the last call, and forget them."""
        taken, self.written = bytes(self.written), bytearray()
        return taken


def _encoded(
    file: Any, parts: Iterable[Samples], rate: int, format: str, channels: int = 1
) -> Iterator[None]:
    """Write ``parts`` to ``file`` as one audio file of one or two channels; yield after each part."""
    import av
    import numpy as np

    form = FORMATS[format]
    layout = "mono" if channels == 1 else "stereo"
    file_rate = next((each for each in form.rates if each >= rate), form.rates[-1]) if form.rates else rate
    with av.open(file, "w", format=form.container, options={"flush_packets": "1"}) as container:
        stream = container.add_stream(form.codec, rate=file_rate, layout=layout)
        assert isinstance(stream, av.AudioStream), "all formats are audio"
        if form.bit_rate is not None:
            stream.bit_rate = form.bit_rate * channels
        for samples in parts:
            integers = (np.clip(np.nan_to_num(samples), -1.0, 1.0) * 32767.0).astype(np.int16)
            interleaved = np.ascontiguousarray(integers.reshape(channels, -1).T).reshape(1, -1)
            step = rate * channels  # one second
            for at in range(0, interleaved.size, step):
                part = interleaved[:, at : at + step]
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                frame.sample_rate = rate
                for packet in stream.encode(frame):
                    container.mux(packet)
            yield
        for packet in stream.encode(None):
            container.mux(packet)
