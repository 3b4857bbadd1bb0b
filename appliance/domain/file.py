"""Records of stored files, and the type of files in the output of a worker process.

The output of a model contains an ``OutputFile``, at any depth, wherever the API later shows the URL of a
file. msgspec calls the hooks in this module only for these objects, so outputs without files cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

_CODE: Final = 1  # type of the msgpack extension


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A stored file: an upload of a client, or an output file of a prediction. Times are Unix seconds."""

    id: str
    owner: str
    name: str
    content_type: str
    size: int  # bytes
    sha256: str
    md5: str
    metadata: dict[str, Any] = {}
    created_at: float
    expires_at: float | None = None
    prediction: str | None = None  # id of the prediction that made the file; None for an upload
    path: str  # relative to the folder of stored files


class OutputFile:
    """A file in the output of a prediction. Files with equal ids are equal.

    This is no struct or dataclass because msgspec encodes those itself and would not call ``pack``.
    """

    __slots__ = ("content_type", "id", "md5", "name", "path", "sha256", "size")

    def __init__(
        self, *, id: str, name: str, content_type: str, size: int, sha256: str, md5: str, path: str
    ) -> None:
        """``id`` is secret. ``path`` is absolute until the file is stored, then relative as in ``File``."""
        self.id = id
        self.name = name
        self.content_type = content_type
        self.size = size
        self.sha256 = sha256
        self.md5 = md5
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputFile) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"OutputFile({self.name!r}, {self.size} bytes)"

    @property
    def url_path(self) -> str:
        return f"/outputs/{self.id}/{self.name}"


def output_files(value: Any) -> Iterator[OutputFile]:
    """Yield the files in an output value, at any depth."""
    if isinstance(value, OutputFile):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from output_files(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from output_files(item)


def pack(value: Any) -> msgspec.msgpack.Ext:
    """Encode an ``OutputFile``. Use as the ``enc_hook`` of msgpack encoders.

    Raises:
        TypeError: ``value`` is not an ``OutputFile``, and msgspec cannot encode its type.
    """
    if not isinstance(value, OutputFile):
        refuse(value)
    fields = [getattr(value, name) for name in OutputFile.__slots__]
    return msgspec.msgpack.Ext(_CODE, msgspec.msgpack.encode(fields))


def unpack(code: int, data: memoryview) -> OutputFile:
    """Decode an ``OutputFile``. Use as the ``ext_hook`` of msgpack decoders.

    Raises:
        ValueError: ``code`` is not the extension code of ``OutputFile``.
    """
    if code != _CODE:
        raise ValueError(f"unknown msgpack extension {code}: expected {_CODE}, an output file")
    fields: list[Any] = msgspec.msgpack.decode(data)
    return OutputFile(**dict(zip(OutputFile.__slots__, fields, strict=True)))


def refuse(value: Any) -> Any:
    """Raise TypeError. Use as the ``enc_hook`` of encoders whose values must not contain files."""
    raise TypeError(f"a value of type {type(value).__name__} cannot be encoded as JSON")
