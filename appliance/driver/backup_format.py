"""The format of backups: a tar archive, compressed with gzip.

The first member is the manifest, the last member has the checksums of all others, in their order and in the
format of ``sha256sum``. The members between them have their paths in the data folder; config files are in
``config``.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Version of the format. Increase it when older code could not restore a backup correctly.
FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
CHECKSUMS: Final = "SHA256SUMS"
DATABASE: Final = "appliance.db"
UI_KEY: Final = "ui.key"
#: The key of an encrypted database, encrypted with the operator's key.
ENCRYPTION: Final = "encryption.json"
#: Folder of models.yaml and of the config in force.
CONFIG: Final = "config"
BUILDS: Final = "cog"
#: First parts of the paths of members.
TOP: Final = frozenset({MANIFEST, CHECKSUMS, DATABASE, ENCRYPTION, UI_KEY, CONFIG, "files", BUILDS})
CHUNK: Final = 1024 * 1024  # bytes read at a time


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a backup."""

    format: int
    appliance: str  # version of the appliance
    schema: int  # format of the database
    created_at: str  # RFC 3339
    home: str  # data folder
    members: int  # without the manifest and the checksums
    bytes: int  # total size of the files


def checksum_line(name: str, digest: str) -> bytes:
    """Return a line as ``sha256sum`` prints it."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    prefix = "\\" if escaped != name else ""
    return f"{prefix}{digest}  {escaped}\n".encode(errors="surrogateescape")
