"""Encryption of the database: its key, and connections with SQLCipher.

The database is encrypted with a random data key. The file ``encryption.json`` beside the database has the
data key, encrypted with AES-256-GCM by the operator's key. So the operator's key can be replaced without
writing the database again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.domain.errors import EncryptionError, StoreError

#: Environment variables with the operator's key, and with the path of a file that has it.
VARIABLE: Final = "APPLIANCE_ENCRYPTION_KEY"
FILE_VARIABLE: Final = "APPLIANCE_ENCRYPTION_KEY_FILE"
#: Name of the secret with the id of the data key of the files, in a database on a server.
FILES_KEY_ID: Final = "files-key-id"

_SIZE: Final = 32  # bytes of both keys
_NONCE: Final = 12
_MAGIC: Final = b"SQLite format 3\0"  # the beginning of a database that is not encrypted
_SECTOR: Final = 512  # bytes; the size of each database is a multiple, that of other files rarely is
_REMEDY: Final = f"set {VARIABLE}, or {FILE_VARIABLE} to the path of a file with the key"


class _Wrapped(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``encryption.json``."""

    format: int
    key: str  # id of the operator's key
    data_key: str  # nonce and encrypted data key, in base64
    created_at: float  # Unix seconds


def key_file(database: Path) -> Path:
    return database.with_name("encryption.json")


def is_encrypted(database: Path) -> bool:
    """Return whether the database has content that is encrypted."""
    try:
        with database.open("rb") as file:
            header = file.read(len(_MAGIC))
    except FileNotFoundError:
        return False
    return bool(header) and header != _MAGIC


def operator_key(variable: str = VARIABLE, file_variable: str = FILE_VARIABLE) -> bytes | None:
    """Return the operator's key from the environment; None if there is none.

    Raises:
        EncryptionError: the key is not 32 bytes in base64 or hex, or its file cannot be read.
    """
    name, text = variable, os.environ.get(variable)
    if not text:
        path = os.environ.get(file_variable)
        if not path:
            return None
        name = f"{file_variable}={path}"
        try:
            text = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise EncryptionError(f"{name}: the key cannot be read: {error}") from error
    text = text.strip()
    try:
        is_hex = re.fullmatch("[0-9a-fA-F]{64}", text) is not None
        key = bytes.fromhex(text) if is_hex else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _SIZE:
        raise EncryptionError(
            f"{name}: a key is 32 bytes in base64 or hex: `openssl rand -base64 32` makes one"
        )
    return key


def key_id(key: bytes) -> str:
    """Return a name of a key that reveals nothing about the key."""
    return hashlib.sha256(b"appliance encryption key " + key).hexdigest()[:16]


def data_key(database: Path) -> bytes | None:
    """Return the key of a database; None if the database is not encrypted.

    If there is no database yet and an operator's key is set, create the data key.

    Raises:
        EncryptionError: a key is missing or wrong, or set although the database is not encrypted.
    """
    file = key_file(database)
    _refuse_lost_key(database)
    if not file.exists():
        if not (os.environ.get(VARIABLE) or os.environ.get(FILE_VARIABLE)):
            return None
        key = operator_key()
        if key is None:
            return None
        if database.exists() and database.stat().st_size:
            raise EncryptionError(
                f"{database}: the database is not encrypted, although {VARIABLE} or {FILE_VARIABLE} is set: "
                "stop the appliance and run `appliance encryption enable`, or remove the variable"
            )
        create(database, key)
    found = read(database)
    if database.exists() and database.stat().st_size and not is_encrypted(database):
        raise EncryptionError(
            f"{database}: the database is not encrypted yet: run `appliance encryption enable` again"
        )
    return found


def files_key(database: Path) -> bytes | None:
    """Return the data key for files whose database is on a server, which is not encrypted with it.

    ``database`` is the path of the SQLite database in the data folder, beside which encryption.json is; it
    need not exist. If an operator's key is set and there is no data key, create it.

    Raises:
        EncryptionError: a key is missing or wrong.
    """
    if not key_file(database).exists():
        key = operator_key()
        if key is None:
            return None
        create(database, key)
    return read(database)


def check_files_key(database: Path, expected: str | None) -> None:
    """Check that this machine can read the files of a database on a server.

    Args:
        database: the path of the SQLite database in the data folder, beside which encryption.json is; it
            need not exist.
        expected: the id of the data key of the files; None if they are not encrypted.

    Raises:
        EncryptionError: this machine has another data key, or none; or the operator's key is wrong.
    """
    file = key_file(database)
    if expected is None or (file.exists() and key_id(read(database)) == expected):
        return
    problem = "has another data key than" if file.exists() else "is missing: it has the data key of"
    raise EncryptionError(
        f"{file} {problem} the files of this appliance: copy encryption.json from the head, or from a backup"
    )


def read(database: Path) -> bytes:
    """Return the data key in the file beside the database, decrypted with the operator's key.

    Raises:
        EncryptionError: the operator's key is missing or wrong, or the file is damaged.
    """
    key = operator_key()
    if key is None:
        raise EncryptionError(
            f"{database}: the database is encrypted with the key {_wrapped(database).key}: {_REMEDY}"
        )
    return _unwrapped(database, _wrapped(database), key)


def create(database: Path, key: bytes) -> None:
    """Create a data key, unless there is one.

    Raises:
        EncryptionError: the database is encrypted with a data key whose file is missing.
        StoreError: the file cannot be written.
    """
    file = key_file(database)
    _refuse_lost_key(database)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = _written(file, key, os.urandom(_SIZE))
        try:
            os.link(new, file)  # two processes may do this at once: the first one wins
        except FileExistsError:
            pass
        finally:
            new.unlink()
    except OSError as error:
        raise StoreError(f"{file}: cannot be written: {error.strerror}") from error


def rewrap(database: Path, new: bytes) -> str:
    """Encrypt the data key with another operator's key; return the id of that key.

    Raises:
        EncryptionError: the database is not encrypted, or the present key is wrong.
        StoreError: the file cannot be written.
    """
    file = key_file(database)
    if not file.exists():
        raise EncryptionError(f"{database}: the database is not encrypted")
    found = read(database)
    try:
        _written(file, new, found).replace(file)
    except OSError as error:
        raise StoreError(f"{file}: cannot be written: {error.strerror}") from error
    return key_id(new)


def key_in_use(database: Path) -> str | None:
    """Return the id of the operator's key of the database; None if it is not encrypted."""
    return _wrapped(database).key if key_file(database).exists() else None


def _refuse_lost_key(database: Path) -> None:
    """Raise EncryptionError if the database is encrypted, but the file with its data key is missing."""
    file = key_file(database)
    try:
        if file.exists() or not is_encrypted(database) or database.stat().st_size % _SECTOR:
            return
    except OSError:  # opening the database reports this
        return
    if not file.exists():  # another process may have created both just now
        raise EncryptionError(
            f"{database}: the database is encrypted, but {file.name} is missing: restore that file from a "
            "backup; if the database was never encrypted, it is damaged: restore the whole backup"
        )


def _wrapped(database: Path) -> _Wrapped:
    file = key_file(database)
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Wrapped)
    except (OSError, msgspec.MsgspecError) as error:
        raise EncryptionError(f"{file}: cannot be read: {error}: restore it from a backup") from error


def _unwrapped(database: Path, wrapped: _Wrapped, key: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if key_id(key) != wrapped.key:
        raise EncryptionError(
            f"{database}: the database is encrypted with the key {wrapped.key}, not with the given key "
            f"{key_id(key)}: {_REMEDY}"
        )
    try:
        encrypted = base64.b64decode(wrapped.data_key, validate=True)
        return AESGCM(key).decrypt(encrypted[:_NONCE], encrypted[_NONCE:], wrapped.key.encode())
    except (InvalidTag, ValueError) as error:
        file = key_file(database)
        raise EncryptionError(
            f"{file}: the data key in it is damaged: restore the file from a backup"
        ) from error


def _written(file: Path, key: bytes, data_key: bytes) -> Path:
    """Write a data key, encrypted with an operator's key, into a new file beside ``file``."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce, id = os.urandom(_NONCE), key_id(key)
    encrypted = base64.b64encode(nonce + AESGCM(key).encrypt(nonce, data_key, id.encode())).decode()
    content = msgspec.json.encode(_Wrapped(format=1, key=id, data_key=encrypted, created_at=time.time()))
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as opened:
        opened.write(content + b"\n")
        opened.flush()
        os.fsync(opened.fileno())
    return new


# -- connections -------------------------------------------------------------------------------------------


def open_database(database: str | Path, key: bytes | None, **options: Any) -> sqlite3.Connection:
    """Return a connection like ``sqlite3.connect``; with ``key`` one that encrypts and decrypts all pages.

    The errors of both are those of ``sqlite3``.
    """
    if key is None:
        clear: sqlite3.Connection = sqlite3.connect(database, **options)
        return clear
    from appliance.store import sqlcipher

    connection: sqlite3.Connection = sqlcipher.connect(str(database), key, **options)
    return connection


def encrypt(database: Path) -> None:
    """Replace a database that no process uses by an encrypted copy. The data key exists already.

    Raises:
        EncryptionError: the operator's key is missing or wrong.
        sqlite3.Error: the copy cannot be written.
    """
    from appliance.store import sqlcipher

    copied = database.with_name(f"{database.name}.encrypted")
    copied.unlink(missing_ok=True)
    sqlcipher.export(database, copied, read(database))
    with copied.open("rb") as file:
        os.fsync(file.fileno())
    copied.chmod(0o600)
    copied.replace(database)
    for suffix in ("-wal", "-shm"):
        database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)
