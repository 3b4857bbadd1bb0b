"""Reads image files with Pillow."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from appliance.domain.errors import PredictionFailed

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats that Pillow decodes itself. For some others, such as PostScript, it starts external programs.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: Unsupported formats that callers send, by the first bytes of their files.
_OTHERS: Final = {
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
#: Unsupported formats, by the brands of an ISO media file.
_BRANDS: Final = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}
#: EXIF orientation -> name of the operation in Pillow's ``Transpose`` that makes the image upright.
_TURNS: Final = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION: Final = 0x0112  # tags of EXIF and TIFF
_BITS: Final = 0x0102
_PHOTOMETRIC: Final = 0x0106
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8"
_START_OF_SCAN: Final = 0xDA
_APPLICATION: Final = {  # JPEG's application segments that are kept -> their minimum length in bytes
    0xE0: 14,  # JFIF
    0xE1: 0,  # EXIF
    0xEE: 12,  # Adobe: meaning of the channels
}


class _NoTransparencyError(Exception):
    """The image has no transparent pixels."""


def read(path: Path, field: str) -> Image:
    """Return the (first) image of a file, upright and in 8-bit colours.

    Args:
        path: the file.
        field: name of the input with the file, for error messages.

    Raises:
        PredictionFailed: the file is not an image, is damaged, or has too many pixels.
    """
    return _read(path, field, upright)


def read_transparency(path: Path, field: str) -> Image:
    """Return the transparency of an image as a grey image: white where the image is transparent.

    Raises:
        PredictionFailed: as ``read``, or the image has no transparency.
    """
    return _read(path, field, _transparency)


def _read(path: Path, field: str, convert: Callable[[Image], Image]) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about damaged metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return _opened(path, convert)
            except Exception:
                repaired = _without_metadata(path)
                if repaired is None:
                    raise
                return _opened(repaired, convert)
    except _NoTransparencyError as error:
        raise PredictionFailed(
            f"input.{field}: this image has no transparency; send a PNG file with transparent pixels"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PredictionFailed(f"input.{field}: this image has too many pixels; scale it down") from error
    except UnidentifiedImageError as error:
        raise PredictionFailed(f"input.{field}: {_unsupported(path)}") from error
    except Exception as error:  # Pillow's decoders raise exceptions of any class for damaged files
        raise PredictionFailed(f"input.{field}: this image is damaged: {error}") from error


def _opened(source: Path | BinaryIO, convert: Callable[[Image], Image]) -> Image:
    from PIL import Image

    with Image.open(source, formats=_FORMATS) as opened:
        return convert(opened)


def is_deep(image: Image) -> bool:
    """Return whether the image is grey with more than 8 bits per pixel."""
    return image.mode[0] in "IF"


def upright(opened: Image) -> Image:
    """Turn an opened image upright and convert it to 8-bit colours."""
    opened.load()
    return _turned(opened, _to_8_bits(opened) if is_deep(opened) else opened.convert("RGB"))


def _transparency(opened: Image) -> Image:
    from PIL import ImageChops

    opened.load()
    if not opened.has_transparency_data:
        raise _NoTransparencyError
    return _turned(opened, ImageChops.invert(opened.convert("RGBA").getchannel("A")))


def _turned(opened: Image, image: Image) -> Image:
    """Turn ``image``, which was made from ``opened``, upright."""
    from PIL import Image

    try:
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # an image with broken EXIF can still be used
        turn = None
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _to_8_bits(image: Image) -> Image:
    """Scale a grey image of 16-bit or 32-bit integers or floats to 8 bits; Pillow would clip its values.

    In 16-bit files white is 65535. Other files do not say which value is white: it is 1 for floats from 0 to
    1, 255 or 65535 for integers that fit, and the largest value otherwise.
    """
    import numpy as np
    from PIL import Image

    values = np.array(image, np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=np.inf, neginf=0.0)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        white = 2.0 ** tags.get(_BITS, (16,))[0] - 1
    else:
        top = float(values.max(where=np.isfinite(values), initial=0.0))
        floats = image.mode == "F" and (top <= 1 or bool((values % 1).any()))
        white = next((limit for limit in ((1.0,) if floats else (255.0, 65535.0)) if top <= limit), top)
    values *= 255 / white
    np.clip(values, 0, 255, out=values)
    shades = np.rint(values, out=values).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        shades = 255 - shades
    return Image.fromarray(shades).convert("RGB")


def _unsupported(path: Path) -> str:
    """Return the error message for a file that Pillow cannot identify as an image."""
    from PIL import features

    supported = [name for name in _FORMATS if name not in {"AVIF", "WEBP"} or features.check(name.lower())]
    with path.open("rb") as file:
        head = file.read(1024)
    name = next((name for begin, name in _OTHERS.items() if head.startswith(begin)), None)
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), 64), 4))}
        name = next((name for name, known in _BRANDS.items() if brands & known), None)
    elif b"<svg" in head:
        name = "SVG"
    if name in supported:
        return f"this image is damaged: it has the header of {name}, but cannot be opened"
    reason = f"this image has the format {name}, which is not supported" if name else "this is not an image"
    return f"{reason}; send one of {', '.join(supported)}"


def _without_metadata(path: Path) -> BinaryIO | None:
    """Return a copy of a PNG or JPEG file without most metadata, which may be damaged; None for others.

    Damaged metadata would make the image library refuse an image that is otherwise correct.
    """
    with path.open("rb") as file:
        start = file.read(len(_PNG))
        file.seek(0)
        if start == _PNG:
            return _critical_chunks(file)
        return _critical_segments(file) if start.startswith(_JPEG) else None


def _critical_chunks(file: BinaryIO) -> BinaryIO:
    """Copy the critical chunks of a PNG file, and EXIF with a corrected checksum."""
    kept = io.BytesIO()
    kept.write(file.read(len(_PNG)))
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        body = file.read(size)
        checksum = file.read(4)
        if kind == b"eXIf":
            checksum = struct.pack(">I", zlib.crc32(kind + body))
        if kind == b"eXIf" or not kind[0] & 0x20:
            kept.write(head + body + checksum)
    kept.seek(0)
    return kept


def _critical_segments(file: BinaryIO) -> BinaryIO:
    """Copy a JPEG file with only those application segments that decoding the pixels needs."""
    kept = io.BytesIO()
    kept.write(file.read(len(_JPEG)))
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != _START_OF_SCAN:
        kind, size = head[1], int.from_bytes(head[2:]) - 2
        body = file.read(max(0, size))
        if not 0xE0 <= kind <= 0xEF or len(body) >= _APPLICATION.get(kind, size + 1):
            kept.write(head + body)
    kept.write(head + file.read())
    kept.seek(0)
    return kept
