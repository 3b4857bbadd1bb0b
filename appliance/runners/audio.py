"""Sound in files: read as numbers, and written, by PyAV, which brings FFmpeg's libraries along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.errors import PredictionFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

#: A playlist may name other files and addresses; no protocol is called "none", so none of them is opened.
_CLOSED: Final = {"protocol_whitelist": "none"}


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
    """The first sound track of a file or film, mixed to one channel of ``rate`` samples/s between -1 and 1.

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
    count = 0
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="ignore", options=_CLOSED) as container:
            if not container.streams.audio:
                raise PredictionFailed(f"input.{field}: there is no sound in this file")
            for piece in _pieces(container, rate):
                count += piece.size
                if count > longest * rate:
                    raise PredictionFailed(
                        f"input.{field}: this is longer than {longest:g} s, the most that is accepted here"
                    )
                pieces.append(piece)
    except (av.FFmpegError, ValueError) as error:  # the latter when the sound changes its form midway
        reason = getattr(error, "strerror", None) or error
        raise PredictionFailed(f"input.{field}: this is no sound that can be read: {reason}") from error
    if not count:
        raise PredictionFailed(f"input.{field}: there is no sound in this file")
    return np.concatenate(pieces)


def _pieces(container: Any, rate: int) -> Iterator[Samples]:
    """The decoded sound, piece by piece; packets that are damaged are left out."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            frame.pts = None  # times are counted from what is there
            for part in resampler.resample(frame):
                yield part.to_ndarray()[0]
    for part in resampler.resample(None):
        yield part.to_ndarray()[0]


def write(path: Path, samples: Samples, rate: int) -> None:
    """Write one channel of sound, ``rate`` samples/s between -1 and 1, in the format of the path's suffix."""
    import av
    import numpy as np

    form = FORMATS[path.suffix.removeprefix(".")]
    written = next((known for known in form.rates if known >= rate), form.rates[-1]) if form.rates else rate
    whole = (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)
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
