"""Encrypted files: AES-256-GCM in chunks, so that any part of a file can be read without the parts before it.

A file is a header and chunks of ``CHUNK`` bytes, each with a tag of 16 bytes. The header has a magic text, a
random salt, the size of the content, and a tag. The key of a file is an HMAC of the data key and the salt,
and the nonce of a chunk is its number. The size is authenticated, so a truncated file is detected.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.domain.errors import StoreError

CHUNK: Final = 64 * 1024  # bytes of content
_TAG: Final = 16
_MAGIC: Final = b"appliance file 1"
_SALT: Final = 16
_SIZE: Final = 8
_BEGIN: Final = len(_MAGIC) + _SALT + _SIZE  # length of the header without its tag
_HEADER: Final = _BEGIN + _TAG
_HEADER_NONCE: Final = b"\xff" * 12  # no chunk has this number


class Readable(Protocol):
    """What readers need of an open file, on the disk or in a bucket."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> object: ...
    def close(self) -> None: ...


class FileCipher:
    """Encrypts and decrypts files with the data key of the database."""

    def __init__(self, data_key: bytes) -> None:
        self._key = hmac.digest(data_key, b"appliance files", "sha256")

    def is_encrypted(self, path: Path) -> bool:
        """Return whether this cipher has encrypted the file.

        Raises:
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            return self._size(file.read(_HEADER)) is not None

    def writer(self, file: BinaryIO) -> EncryptedWriter:
        """Return a writer that encrypts into an empty, open file."""
        salt = os.urandom(_SALT)
        return EncryptedWriter(file, salt, self._of(salt))

    def encrypt(self, path: Path) -> None:
        """Replace a file by an encrypted copy, unless it is encrypted. Readers see the one or the other.

        Raises:
            OSError: a file cannot be read or written.
        """
        with path.open("rb") as source:
            if self._size(source.read(_HEADER)) is not None:
                return
            source.seek(0)
            new = path.with_name(f".encrypted-{hashlib.sha256(path.name.encode()).hexdigest()[:16]}")
            try:
                with new.open("wb") as target:
                    writer = self.writer(target)
                    while piece := source.read(CHUNK):
                        writer.write(piece)
                    writer.close()
                    target.flush()
                    os.fsync(target.fileno())
                    os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)

    def open(self, path: Path) -> ContentReader:
        """Return a reader of the content of a file, which may be encrypted or not.

        The file is opened once, so the reader is right even if ``encrypt`` replaces the file meanwhile.

        Raises:
            OSError: the file cannot be read.
        """
        file = path.open("rb")
        try:
            return self.reader(file, os.fstat(file.fileno()).st_size, path)
        except BaseException:
            file.close()
            raise

    def reader(self, file: Readable, size: int, path: Path) -> ContentReader:
        """Return a reader of the content of an open file of ``size`` bytes; ``path`` is for error messages.

        Raises:
            OSError: the file cannot be read.
        """
        header = file.read(_HEADER)
        content = self._size(header)
        if content is None:
            return PlainReader(file, size)
        return EncryptedReader(path, file, content, self._of(header[len(_MAGIC) :][:_SALT]))

    def copy_content(self, path: Path, target: Path) -> None:
        """Write the content of a file, which may be encrypted or not, to ``target``.

        Raises:
            OSError: a file cannot be read or written.
            StoreError: the encrypted file is damaged.
        """
        with contextlib.closing(self.open(path)) as reader, target.open("wb") as file:
            for piece in reader.pieces(0, reader.size):
                file.write(piece)

    def _of(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._key, salt, "sha256"))

    def _size(self, header: bytes) -> int | None:
        """Return the size of the content of a file with this header; None if it is not encrypted."""
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            return None
        begin = header[:_BEGIN]
        try:
            self._of(begin[len(_MAGIC) :][:_SALT]).decrypt(_HEADER_NONCE, header[_BEGIN:], begin)
        except InvalidTag:
            return None
        return int.from_bytes(begin[-_SIZE:], "big")


class EncryptedWriter:
    """Writes an encrypted file. The header is written last, because the size is in it."""

    def __init__(self, file: BinaryIO, salt: bytes, cipher: AESGCM) -> None:
        self._file = file
        self._salt = salt
        self._cipher = cipher
        self._number = 0
        self._size = 0
        self._buffer = bytearray()
        file.write(b"\0" * _HEADER)

    def write(self, data: bytes | bytearray) -> None:
        self._size += len(data)
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            self._chunk(bytes(self._buffer[:CHUNK]))
            del self._buffer[:CHUNK]

    def close(self) -> None:
        """Write the rest and the header; the caller closes the file."""
        if self._buffer:
            self._chunk(bytes(self._buffer))
            self._buffer.clear()
        begin = _MAGIC + self._salt + self._size.to_bytes(_SIZE, "big")
        self._file.seek(0)
        self._file.write(begin + self._cipher.encrypt(_HEADER_NONCE, b"", begin))
        self._file.seek(0, os.SEEK_END)

    def _chunk(self, content: bytes) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number), content, None))
        self._number += 1


class EncryptedReader:
    """Reads an encrypted file; ``size`` is that of its content."""

    def __init__(self, path: Path, file: Readable, size: int, cipher: AESGCM) -> None:
        self._path = path
        self._file = file
        self._cipher = cipher
        self.size = size

    def close(self) -> None:
        self._file.close()

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the content from byte ``start`` to before byte ``end``, in pieces of at most ``CHUNK`` bytes.

        Raises:
            OSError: the file cannot be read.
            StoreError: the file is damaged.
        """
        for number in range(start // CHUNK, -(-end // CHUNK)):
            begin = number * CHUNK
            content = self._chunk(number)
            yield content[max(start - begin, 0) : end - begin]

    def _chunk(self, number: int) -> bytes:
        self._file.seek(_HEADER + number * (CHUNK + _TAG))
        length = min(CHUNK, self.size - number * CHUNK)
        try:
            return self._cipher.decrypt(_nonce(number), self._file.read(length + _TAG), None)
        except InvalidTag as error:
            text = f"{self._path}: the encrypted file is damaged: restore it from a backup"
            raise StoreError(text) from error


class PlainReader:
    """Reads a file that is not encrypted, like ``EncryptedReader``."""

    def __init__(self, file: Readable, size: int) -> None:
        self._file = file
        self.size = size

    def close(self) -> None:
        self._file.close()

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the content from byte ``start`` to before byte ``end``, in pieces of at most ``CHUNK`` bytes.

        Raises:
            OSError: the file cannot be read.
        """
        self._file.seek(start)
        left = end - start
        while left > 0 and (piece := self._file.read(min(left, CHUNK))):
            left -= len(piece)
            yield piece


ContentReader = EncryptedReader | PlainReader


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
