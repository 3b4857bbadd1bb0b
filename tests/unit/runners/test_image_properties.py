"""Any image, of any mode and depth and with any metadata, is read right or refused in one clear message."""

from __future__ import annotations

import functools
import io
import logging
import struct
import zlib
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from appliance.domain.errors import PredictionFailed
from appliance.runners import images

_WIDE, _HIGH = 48, 32
#: From black on the left to white on the right.
_SHADES: Final = np.tile(np.linspace(0, 1, _WIDE), (_HIGH, 1))
_EIGHT: Final = Image.fromarray(np.rint(_SHADES * 255).astype(np.uint8))
_DEEP: Final[dict[str, Any]] = {
    "I;16": np.rint(_SHADES * 65535).astype("<u2"),
    "I;16B": np.rint(_SHADES * 65535).astype(">u2"),
    "I": np.rint(_SHADES * 65535).astype(np.int32),
    "F": _SHADES.astype(np.float32),
}
#: format, its modes, and how far shades may be off
_FORMATS: Final = (
    ("PNG", ("L", "LA", "P", "RGB", "RGBA", "I;16"), 1),
    ("JPEG", ("L", "RGB", "CMYK"), 12),
    ("WEBP", ("RGB", "RGBA"), 12),
    ("GIF", ("L", "P"), 1),
    ("BMP", ("L", "P", "RGB"), 1),
    ("TIFF", ("L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"), 1),
    ("AVIF", ("RGB", "RGBA"), 12),
)
_DAMAGES: Final = ("none", "cut", "noise", "junk after")
_CHUNKS: Final = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"pHYs", b"sRGB", b"tIME", b"eXIf", b"acTL")


def _image(mode: str) -> Image.Image:
    if mode in _DEEP:
        return Image.fromarray(_DEEP[mode])
    return _EIGHT.convert("P" if mode == "P" else "RGB" if mode == "CMYK" else "L").convert(mode)


@functools.cache
def saved(form: str, mode: str) -> bytes:
    file = io.BytesIO()
    _image(mode).save(file, form)
    return file.getvalue()


def _with_metadata(form: str, mode: str, exif: bytes | None, profile: bytes | None) -> bytes:
    file = io.BytesIO()
    named = {"exif": exif, "icc_profile": profile}
    _image(mode).save(file, form, **{name: value for name, value in named.items() if value is not None})
    return file.getvalue()


@st.composite
def broken_exif(draw: st.DrawFn) -> bytes:
    """EXIF of an upright image with some bytes changed, or random bytes instead of EXIF."""
    if draw(st.booleans()):
        return b"Exif\0\0" + draw(st.binary(max_size=60))
    made = Image.Exif()
    made[0x010F], made[0x011A] = "maker", 72.0
    made.get_ifd(0x8769)[0x9003] = "2026:11:28 12:00:00"
    content = bytearray(made.tobytes())
    for at, value in draw(
        st.dictionaries(st.integers(6, len(content) - 1), st.integers(0, 255), max_size=6)
    ).items():
        content[at] = value
    if b"\x01\x12\x00" in content or b"\x12\x01" in content:  # it may contain another orientation now
        return b"Exif\0\0"
    return bytes(content)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, bytes, int]:
    """The damage, the file content, and how far shades may be off."""
    form, modes, off = draw(st.sampled_from(_FORMATS))
    mode = draw(st.sampled_from(modes))
    content = saved(form, mode)
    if form in {"PNG", "JPEG", "WEBP"} and draw(st.booleans()):
        content = _with_metadata(
            form, mode, draw(st.none() | broken_exif()), draw(st.none() | st.binary(min_size=1, max_size=200))
        )
    elif form == "PNG":
        kind, inner = draw(st.sampled_from(_CHUNKS)), draw(st.binary(max_size=40))
        checksum = draw(st.sampled_from([zlib.crc32(kind + inner), 0]))
        chunk = struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", checksum)
        content = content[:33] + chunk + content[33:]
    elif form == "JPEG":
        number, inner = draw(st.integers(0xE1, 0xEF)), draw(st.binary(max_size=40))
        begin = draw(
            st.sampled_from([b"", b"Exif\0\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"MPF\0", b"Adobe"])
        )
        if number != 0xEE or len(begin + inner) < 12:  # a complete Adobe segment defines the colours
            segment = struct.pack(">BBH", 0xFF, number, len(begin + inner) + 2) + begin + inner
            content = content[:2] + segment + content[2:]
    damage = draw(st.sampled_from(_DAMAGES))
    at, more = draw(st.integers(0, len(content) - 1)), draw(st.binary(min_size=1, max_size=16))
    match damage:
        case "cut":
            content = content[:at]
        case "noise":
            content = content[:at] + more + content[at + len(more) :]
        case "junk after":
            content += more
    return damage, content, off


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_an_image_is_read_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, bytes, int],
) -> None:
    damage, content, off = case
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # refuses damaged headers with huge sizes early
    file = tmp_path_factory.getbasetemp() / "image"
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        try:
            read = images.read(file, "image")
        except PredictionFailed as refused:
            assert damage not in {"none", "junk after"}, refused
            assert str(refused).startswith("input.image: this ")
            assert "\n" not in str(refused)
            return
    assert not caplog.records
    assert read.mode == "RGB"
    if damage in {"none", "junk after"}:
        assert read.size == (_WIDE, _HIGH)
        assert np.abs(np.asarray(read) - _SHADES[..., None] * 255).max() <= off + 1


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    scale=st.sampled_from([1.0, 255.0, 65535.0]),
    strange=st.dictionaries(st.integers(0, _WIDE - 2), st.sampled_from([np.nan, -np.inf, -5.0]), max_size=5),
)
def test_strange_floats_change_nothing_but_themselves(
    tmp_path_factory: pytest.TempPathFactory, scale: float, strange: dict[int, float]
) -> None:
    values = np.rint(_SHADES * scale) if scale > 1 else _SHADES.copy()
    wanted = np.rint(values / scale * 255)
    for at, value in strange.items():
        values[5, at], wanted[5, at] = value, 0
    file = tmp_path_factory.getbasetemp() / "strange.tiff"
    Image.fromarray(values.astype(np.float32)).save(file)
    assert np.abs(np.asarray(images.read(file, "image"))[..., 0] - wanted).max() <= 1
