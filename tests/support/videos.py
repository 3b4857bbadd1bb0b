"""Writes small videos."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image


def write_video(
    path: Path,
    colours: Sequence[tuple[int, int, int]],
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    begin: int = 0,
) -> None:
    """Write a video in the format of the file's suffix, whose frames each have one colour.

    ``begin`` is the time of the first frame, as a number of frames.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number, colour in enumerate(colours):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, colour))
            frame.pts, frame.time_base = begin + number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
