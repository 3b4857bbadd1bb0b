"""Unpacks the archive of a pushed Cog project."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Final

from appliance.domain.errors import WeightsError
from appliance.domain.units import readable_bytes

#: Maximum size of the unpacked files, because a small compressed archive could fill the disk.
_BYTES: Final = 20 * 1024**3
_MEMBERS: Final = 100_000


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, which may be compressed, into the new folder ``folder``.

    Raises:
        WeightsError: the file is not a tar archive, is too large, or has a member outside of ``folder``.
    """
    folder.mkdir(parents=True)
    size = count = 0
    try:
        with tarfile.open(archive, "r:*") as opened:
            for member in opened:
                size, count = size + member.size, count + 1
                if size > _BYTES or count > _MEMBERS:
                    limits = f"{readable_bytes(_BYTES)}, or has more than {_MEMBERS:,} files"
                    raise WeightsError(f"the archive is larger than {limits}: remove files from the project")
                # The filter refuses outside paths and links, and devices; it drops owners and set-uid.
                opened.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:  # tarfile wraps errors of zlib and lzma
        raise WeightsError(f"the archive cannot be unpacked: {error}") from error
