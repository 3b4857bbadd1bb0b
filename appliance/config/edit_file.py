"""Edit the file models.yaml: one writer at a time, checked before it replaces the old file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.config import includes, text_file, validated, yaml_source
from appliance.config.sections import Config
from appliance.domain.errors import ConfigError


def edit_file(path: Path, edit: Callable[[str], str]) -> Config:
    """Replace the content of ``path`` by ``edit`` of its text, and return the new config.

    The new text is checked like any models.yaml. The file is replaced at once, so that readers see the old or
    the new text. A file that is missing is created.

    Raises:
        ConfigError: the new text is not a valid config, or the file cannot be written. The old file stays.
    """
    real = path.resolve()  # a symbolic link stays a link
    with _alone(real.parent):
        exists = real.exists()
        old = text_file.read(real) if exists else ""
        new = edit(old)
        checked = _checked(new, path)
        if new != old:
            marked = exists and real.read_bytes().startswith(b"\xef\xbb\xbf")
            _replace(real, new.encode("utf-8-sig" if marked else "utf-8"))
    return checked


def check_edit(path: Path, edit: Callable[[str], str]) -> Config:
    """Return the config that ``edit_file`` would give, and write nothing.

    Raises:
        ConfigError: the new text is not a valid config.
    """
    text = edit(text_file.read(path) if path.exists() else "")
    return _checked(text, path)


def _checked(text: str, path: Path) -> Config:
    document = yaml_source.parse(text, str(path), os.environ)
    return validated(includes.with_included(document, path, os.environ), path)


def _replace(path: Path, content: bytes) -> None:
    temporary = None
    try:
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o600
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"cannot be written: {error.strerror}: correct the permissions of the file and its folder",
            file=str(path),
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process edits files of this folder. The kernel frees the lock of a dead process."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot be opened: {error.strerror}", file=str(folder)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
