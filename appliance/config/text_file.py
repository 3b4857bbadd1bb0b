"""Read text files that people wrote, up to a size limit."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import Final

from appliance.domain.errors import ConfigError

LARGEST: Final = 1024 * 1024  # bytes

_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: Path) -> str:
    """Return the text of a regular file, without a byte order mark.

    Raises:
        ConfigError: the file is missing, is not a regular file, cannot be read, is larger than ``LARGEST``,
            or is not UTF-8.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would block until another process opens it for writing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            what = _KINDS.get(kind, "not a regular file")
            raise ConfigError(f"is {what}: name a text file", file=str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise ConfigError(f"is larger than {LARGEST // 1024**2} MiB: name a smaller file", file=str(path))
    return _decoded(content, str(path))


def _unreadable(path: Path, error: OSError) -> ConfigError:
    message = f"cannot be read: {error.strerror}: correct the path or the permissions of the file"
    return ConfigError(message, file=str(path))


def _decoded(content: bytes, file: str) -> str:
    if content.startswith(_UTF_16):
        raise ConfigError("is UTF-16 text: save it as UTF-8", file=file)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text: save it as UTF-8", file=file, line=line) from error
