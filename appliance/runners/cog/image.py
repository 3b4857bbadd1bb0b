"""The description of an unpacked Cog image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.domain.errors import WeightsError

#: Folder of the unpacked image, and file with its description, in the folder of an image.
ROOT: Final = "root"
DESCRIPTION: Final = "image.json"


class ImageDescription(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an image that the appliance needs to run it, from its configuration and its labels."""

    digest: str  # of its manifest, such as "sha256:..."
    reference: str  # that it was pulled with
    cog: str  # version of Cog in the image; empty if unknown
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str  # working folder
    concurrency: int  # predictions at the same time
    interface: dict[str, Any]


def description(folder: Path) -> ImageDescription:
    """Return the description of the unpacked image in ``folder``.

    Raises:
        WeightsError: the image is not unpacked, or the description is damaged.
    """
    try:
        return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=ImageDescription)
    except OSError as error:
        raise WeightsError(f"the Cog image is not at {folder}: run `appliance pull`") from error
    except msgspec.DecodeError as error:
        raise WeightsError(f"{folder} is damaged: remove it and run `appliance pull`") from error
