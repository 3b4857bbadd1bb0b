"""Pictures as callers give them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from appliance.errors import PredictionFailed
from appliance.runners import images


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "image", format=form)
    read = images.read(tmp_path / "image", "image")
    assert (read.mode, read.size) == ("RGB", (30, 20))
    pixel = read.getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200
    assert pixel[1] < 50


def test_it_is_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "image.jpg", exif=turned)
    assert images.read(tmp_path / "image.jpg", "image").size == (20, 30)


def test_what_is_transparent_has_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "image.png")
    assert images.read(tmp_path / "image.png", "image").mode == "RGB"


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name in ("script.eps", "nothing"):
        (tmp_path / name).touch()
        with pytest.raises(PredictionFailed, match=r"^input\.mask: this is no image of a known format"):
            images.read(tmp_path / name, "mask")
    Image.effect_noise((200, 200), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    with pytest.raises(PredictionFailed, match=r"^input\.image: this image is damaged"):
        images.read(tmp_path / "half.png", "image")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(PredictionFailed, match=r"^input\.image: this image has too many pixels"):
        images.read(tmp_path / "huge.png", "image")
