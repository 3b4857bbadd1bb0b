"""Pictures in files, read by Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.errors import PredictionFailed

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats that Pillow decodes by itself; some others of its it hands to programs of this machine.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def read(path: Path, field: str) -> Image:
    """The picture, or the first one, in colours and upright.

    Args:
        path: the file.
        field: the input that the file came in, for messages.

    Raises:
        PredictionFailed: it is none, or is damaged, or would take too much memory.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PredictionFailed(f"input.{field}: this image has too many pixels to be opened") from error
    except UnidentifiedImageError as error:
        raise PredictionFailed(f"input.{field}: this is no image of a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # whatever Pillow's decoders stumble over
        raise PredictionFailed(f"input.{field}: this image is damaged: {error}") from error
