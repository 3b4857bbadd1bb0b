"""A project's archive unpacked: files and folders below one folder, and nothing else."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Final

from appliance.domain.errors import WeightsError

#: What an archive may become on the disk; it is a small file that could become a full disk.
_BYTES: Final = 20 * 1024**3
_MEMBERS: Final = 100_000


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, compressed or not, into ``folder``, which is made.

    Raises:
        WeightsError: it is none, is too large, or has something in it that would lie outside.
    """
    folder.mkdir(parents=True)
    taken = count = 0
    try:
        with tarfile.open(archive, "r:*") as opened:
            for member in opened:
                taken, count = taken + member.size, count + 1
                if taken > _BYTES or count > _MEMBERS:
                    raise WeightsError(
                        f"the archive is too large: {_BYTES:,} bytes in {_MEMBERS:,} files are the most"
                    )
                # Refuses absolute names, "..", links that lead outside and devices; drops owners and set-uid.
                opened.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:  # zlib's and lzma's errors are tarfile's here
        raise WeightsError(f"the archive cannot be unpacked: {error}") from error
