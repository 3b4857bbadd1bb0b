"""Edit the file models.yaml: one writer at a time, checked before it replaces the old file."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from appliance.config import includes, text_file, validated, yaml_source
from appliance.config.sections import Config
from appliance.domain.errors import ConfigError

_ATTEMPTS: Final = 10  # at an edit, if other programs change the file meanwhile


class Edited(NamedTuple):
    """An edit of the file: the config of the new text, and both texts."""

    config: Config
    old: str
    new: str

    def diff(self, path: Path) -> str:
        """Return the unified diff of the texts; empty if they are the same."""
        old, new = (text.removesuffix("\n").split("\n") for text in (self.old, self.new))
        found = difflib.unified_diff(old, new, fromfile=path.name, tofile=path.name, lineterm="")
        return "".join(f"{line}\n" for line in found)


def edit_file(path: Path, edit: Callable[[str], str], included: Path | None = None) -> Edited:
    """Replace the content of ``path``, or of one of its ``included`` files, by ``edit`` of its text.

    The new text is checked like any models.yaml, together with the other files. The file is replaced at once,
    so that readers see the old or the new text. If another program has changed the file meanwhile, its new
    text is edited instead. A file that is missing is created.

    Raises:
        ConfigError: the new text is not a valid config, or the file cannot be written. The old file stays.
    """
    real = (included or path).resolve()  # a symbolic link stays a link
    with _alone(path):
        for _ in range(_ATTEMPTS):
            old = _text(real)
            new = edit(old)
            edited = Edited(check(new, path, included), old, new)
            if _text(real) == old:
                if new != old:
                    _write(real, new)
                return edited
        raise ConfigError(
            "another program changed the file at each attempt to edit it: try again later", file=str(real)
        )


def put_back(path: Path, edited: Edited, included: Path | None = None) -> bool:
    """Undo an edit. Return False, and change nothing, if the file has been changed since.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    real = (included or path).resolve()
    with _alone(path):
        if _text(real) != edited.new:
            return False
        if edited.new != edited.old:
            _write(real, edited.old)
        return True


def preview(path: Path, edit: Callable[[str], str], included: Path | None = None) -> Edited:
    """Return the edit that ``edit_file`` would make, and write nothing.

    Raises:
        ConfigError: the new text is not a valid config.
    """
    old = _text(included or path)
    new = edit(old)
    return Edited(check(new, path, included), old, new)


def checksum_of(text: str) -> str:
    """Return the SHA-256 of ``text``, which detects changes of the file."""
    return hashlib.sha256(text.encode()).hexdigest()


def with_line_ends_of(old: str, text: str) -> str:
    """Return ``text`` with the line ends of ``old``, because editors in browsers change them."""
    text = text.replace("\r\n", "\n")
    return text.replace("\n", "\r\n") if "\r\n" in old else text


def check_writable(path: Path) -> None:
    """Check that ``edit_file`` can replace the file ``path``.

    Raises:
        ConfigError: the file cannot be replaced.
    """
    real = path.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=real.parent, prefix=f".{real.name}."):
            pass
        if os.path.ismount(real):  # such a file cannot be replaced, only written
            raise OSError(errno.EBUSY, "the file is a mount of its own: mount its folder instead")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    message = f"cannot be written: {error.strerror}: correct the permissions of the file and its folder"
    return ConfigError(message, file=str(path))


def _text(path: Path) -> str:
    return text_file.read(path) if path.exists() else ""


def _write(path: Path, text: str) -> None:
    marked = path.exists() and path.read_bytes().startswith(b"\xef\xbb\xbf")
    _replace(path, text.encode("utf-8-sig" if marked else "utf-8"))


def check(text: str, path: Path, included: Path | None = None) -> Config:
    """Return the config with ``text`` as the content of ``path``, or of one of its ``included`` files.

    Raises:
        ConfigError: the config is not valid.
    """
    if included is None:
        document = yaml_source.parse(text, str(path), os.environ)
        return validated(includes.with_included(document, path, os.environ), path)
    document = yaml_source.read(path, os.environ)
    return validated(includes.with_included(document, path, os.environ, {included: text}), path)


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
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process edits the config. The kernel frees the lock of a dead process."""
    folder = path.resolve().parent
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot be opened: {error.strerror}", file=str(folder)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
