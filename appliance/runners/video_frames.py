"""Frames of videos, for models that accept images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from appliance.domain.errors import PredictionFailed
from appliance.runners import audio

if TYPE_CHECKING:
    from PIL.Image import Image

#: Longest video that is accepted, in seconds: its frames are decoded one after the other.
LONGEST: Final = 600.0
_FRAME_RATE: Final = 60  # frames per second that are assumed in files without times
#: FFmpeg's formats that show a text file as a video of a terminal.
_TEXT: Final = frozenset({"adf", "bin", "idf", "tty", "xbin"})
_SIDE: Final = 1024  # longest side of a frame, in pixels; larger frames are scaled down


def read(path: Path, count: int, field: str, cancelled: threading.Event) -> Iterator[Image]:
    """Yield at most ``count`` frames of a video, upright and evenly spaced from its beginning to its end.

    Args:
        path: the file; no other file or URL is opened, even if this is a playlist.
        count: number of frames. A video with fewer frames gives all of them.
        field: name of the input with the file, for error messages.
        cancelled: ends the decoding early when it is set.

    Raises:
        PredictionFailed: the file has no video, cannot be decoded, or is too long.
    """
    import av

    try:
        with path.open("rb") as file:
            total = _count(file, field, cancelled)
            wanted = {(2 * number + 1) * total // (2 * count) for number in range(count)}
            file.seek(0)
            found = False
            with av.open(file, metadata_errors="ignore", options=audio.ONE_FILE) as container:
                for number, frame in enumerate(container.decode(container.streams.video[0])):
                    if number in wanted:
                        yield _image(frame)
                        found = True
                    if cancelled.is_set() or number >= max(wanted):
                        break
    except (av.FFmpegError, ValueError) as error:  # ValueError comes from PyAV's own checks
        reason = getattr(error, "strerror", None) or error
        raise PredictionFailed(f"input.{field}: this video cannot be decoded: {reason}") from error
    if not found and not cancelled.is_set():
        raise PredictionFailed(f"input.{field}: this file has no video stream; send a video file")


def _count(file: BinaryIO, field: str, cancelled: threading.Event) -> int:
    """Return the number of frames, without decoding them.

    Raises:
        PredictionFailed: the file has no video, or is too long.
    """
    import av

    with av.open(file, metadata_errors="ignore", options=audio.ONE_FILE) as container:
        if not container.streams.video or container.format.name in _TEXT:
            raise PredictionFailed(f"input.{field}: this file has no video stream; send a video file")
        total, begin = 0, None
        for packet in container.demux(container.streams.video[0]):
            if cancelled.is_set():
                break
            seconds = total / _FRAME_RATE  # if the file has no times
            if packet.pts is not None:
                seconds = float(packet.pts * packet.time_base)
                begin = seconds if begin is None else min(begin, seconds)
            if seconds - (begin or 0.0) > LONGEST:
                raise PredictionFailed(
                    f"input.{field}: the video is longer than {LONGEST:.0f} s; send a shorter one"
                )
            total += packet.size > 0
        return total


def _image(frame: Any) -> Image:
    scale = min(1.0, _SIDE / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    image: Image = frame.reformat(width, height, format="rgb24").to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
