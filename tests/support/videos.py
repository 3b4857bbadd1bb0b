"""Writes small videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image


def write_video(
    path: Path, colours: Sequence[tuple[int, int, int]], size: tuple[int, int] = (64, 48), rate: int = 10
) -> None:
    """Write an MP4 file whose frames each have one colour."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", size, colour))))
        container.mux(stream.encode())
