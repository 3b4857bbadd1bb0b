"""Image files of many formats, damaged ones among them."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from appliance.domain.errors import PredictionFailed
from appliance.runners import images


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "image", format=form)
    read = images.read(tmp_path / "image", "image")
    assert (read.mode, read.size) == ("RGB", (30, 20))
    pixel = read.getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200
    assert pixel[1] < 50


SHADES: npt.NDArray[np.float64] = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(
    ("form", "values", "more"),
    [
        ("PNG", (SHADES * 65535).astype("<u2"), {}),
        ("TIFF", (SHADES * 65535).astype("<u2"), {}),
        ("TIFF", (SHADES * 65535).astype(">u2"), {}),
        ("TIFF", ((1 - SHADES) * 65535).astype("<u2"), {"tiffinfo": {0x0106: 0}}),  # white is zero
        ("TIFF", (SHADES * 65535).astype(np.int32), {}),
        ("TIFF", SHADES.astype(np.float32), {}),
        ("TIFF", (SHADES * 1000).astype(np.float32), {}),
        ("TIFF", np.rint(SHADES * 255).astype(np.float32), {}),
        ("TIFF", np.rint(SHADES * 65535).astype(np.float32), {}),
    ],
)
def test_grey_of_more_than_8_bits_keeps_its_shades(
    tmp_path: Path, form: str, values: Any, more: dict[str, Any]
) -> None:
    Image.fromarray(values).save(tmp_path / "image", format=form, **more)
    for field in ("image", "mask", "control_image"):
        read = np.asarray(images.read(tmp_path / "image", field))
        assert read.shape == (64, 64, 3)
        assert np.abs(read - SHADES[..., None] * 255).max() <= 1


def test_dark_grey_of_16_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 257 * 3, np.uint16)).save(tmp_path / "image.png")
    assert images.read(tmp_path / "image.png", "image").getpixel((4, 4)) == (3, 3, 3)


def test_nan_and_infinity_leave_other_pixels_as_they_are(tmp_path: Path) -> None:
    values = SHADES.astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "image.tiff")
    read = np.asarray(images.read(tmp_path / "image.tiff", "image"))[..., 0]
    assert list(read[0, :3]) == [0, 255, 0]
    assert np.abs(read[1:] - SHADES[1:] * 255).max() <= 1


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """A chunk of a PNG file."""
    right = zlib.crc32(kind + content)
    ending = struct.pack(">I", right if checksum is None else checksum)
    return struct.pack(">I", len(content)) + kind + content + ending


def segment(kind: int, content: bytes) -> bytes:
    """A segment of a JPEG file."""
    return bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """EXIF with one entry."""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI4s", 1, tag, kind, count, value) + bytes(4)


def saved(form: str, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (250, 0, 0)).save(file, form, **more)
    return file.getvalue()


def is_red(file: Path, content: bytes, size: tuple[int, int] = (30, 20)) -> None:
    file.write_bytes(content)
    read = images.read(file, "image")
    assert read.size == size
    pixel = read.getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 240
    assert pixel[1] < 10


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0this is none",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        entry(0x0112, 5, 1, b"\xff\xff\xff\x7f"),
        entry(0x0112, 2, 4, b"six\0"),
        entry(0x0112, 3, 1, b"\x63\0\0\0"),
        entry(0x8769, 4, 1, b"\xff\xff\xff\xff"),
    ],
)
def test_broken_exif_is_ignored(
    tmp_path: Path, form: str, exif: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        is_red(tmp_path / "image", saved(form, exif=exif))
    assert not caplog.records


def test_broken_exif_with_an_orientation(tmp_path: Path) -> None:
    exif = entry(0x0112, 3, 1, b"\6\0\0\0").replace(b"\1\0\x12\1", b"\2\0\x12\1") + b"\x0f\1\x05\0\xff"
    is_red(tmp_path / "image", saved("JPEG", exif=exif), (20, 30))


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"iCCP", b"no end"),
        chunk(b"iCCP", b"name\0\0this is none"),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"zTXt", b"name\0\5unknown"),
        chunk(b"tEXt", b"name\0text", checksum=5),
        chunk(b"iTXt", b"\xff\0\1\0\xff\0\xff\0\xff"),
        chunk(b"eXIf", b"this is none"),
        chunk(b"gAMA", b""),
        chunk(b"pHYs", b"1"),
        chunk(b"sRGB", b""),
        chunk(b"acTL", b""),
    ],
)
def test_broken_chunks_without_pixels(tmp_path: Path, broken: bytes) -> None:
    whole = saved("PNG")
    is_red(tmp_path / "image.png", whole[:33] + broken + whole[33:])


@pytest.mark.parametrize(
    "broken",
    [
        segment(0xE0, b"JFIF"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1\5this is none"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed"),
        segment(0xEE, b"Adobe"),
    ],
)
def test_broken_segments_without_pixels(tmp_path: Path, broken: bytes) -> None:
    whole = saved("JPEG")
    is_red(tmp_path / "image.jpg", whole[:2] + broken + whole[2:])


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    ],
)
def test_an_unsupported_format_is_named(tmp_path: Path, head: bytes, name: str) -> None:
    (tmp_path / "image").write_bytes(head + bytes(100))
    wanted = rf"this image has the format {name}, .*; send one of PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF$"
    with pytest.raises(PredictionFailed, match=rf"^input\.image: {wanted}"):
        images.read(tmp_path / "image", "image")


def test_avif_without_support_in_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(100))
    with pytest.raises(
        PredictionFailed, match=r"^input\.image: this image is damaged: it has the header of AVIF"
    ):
        images.read(tmp_path / "image", "image")
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    with pytest.raises(PredictionFailed, match=r"AVIF, which is not supported; .*, BMP, TIFF$"):
        images.read(tmp_path / "image", "image")


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "image.jpg", exif=turned)
    assert images.read(tmp_path / "image.jpg", "image").size == (20, 30)


def test_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "image.png")
    assert images.read(tmp_path / "image.png", "image").mode == "RGB"


def test_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name in ("script.eps", "nothing"):
        (tmp_path / name).touch()
        why = "this image has the format PostScript" if name == "script.eps" else "this is not an image"
        with pytest.raises(PredictionFailed, match=rf"^input\.mask: {why}.*; send one of PNG"):
            images.read(tmp_path / name, "mask")
    Image.effect_noise((200, 200), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    with pytest.raises(PredictionFailed, match=r"^input\.image: this image is damaged"):
        images.read(tmp_path / "half.png", "image")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(PredictionFailed, match=r"^input\.image: this image has too many pixels"):
        images.read(tmp_path / "huge.png", "image")


def test_transparency_is_white(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    image = Image.new("RGBA", (3, 2), (9, 9, 9, 255))
    image.putpixel((0, 0), (255, 255, 255, 0))
    image.putpixel((1, 0), (0, 0, 0, 100))
    image.save(file, exif=_turned_right())
    found = images.read_transparency(file, "mask")
    assert (found.mode, found.size) == ("L", (2, 3))
    assert [found.getpixel(at) for at in ((1, 0), (1, 1), (1, 2), (0, 0))] == [255, 155, 0, 0]
    image.convert("RGB").save(file)
    with pytest.raises(PredictionFailed, match=r"^input\.mask: this image has no transparency; send"):
        images.read_transparency(file, "mask")
    file.write_bytes(b"no image")
    with pytest.raises(PredictionFailed, match=r"^input\.mask: this is not an image"):
        images.read_transparency(file, "mask")


def _turned_right() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
