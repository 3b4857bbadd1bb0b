"""Files: what is known of one, and how one that a model made travels in outputs to the store. Pure.

An ``OutputFile`` stands in an output wherever the JSON of it will have an address, at any depth. msgspec asks
the hooks here how to write and read it, so that outputs without files cost nothing.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_CODE: Final = 1  # of the msgpack extension


class File(msgspec.Struct, frozen=True, kw_only=True):
    """An upload, or a file that a prediction made. Times are Unix seconds."""

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
    prediction: str | None = None  # that made it; None for an upload
    path: str  # relative to the folder of files


class OutputFile:
    """A file in an output. Equal if it is the same file."""

    __slots__ = ("content_type", "id", "md5", "name", "path", "sha256", "size")

    def __init__(
        self, *, id: str, name: str, content_type: str, size: int, sha256: str, md5: str, path: str
    ) -> None:
        """``id`` cannot be guessed; ``path`` is absolute while it travels, then relative to the files."""
        self.id = id
        self.name = name
        self.content_type = content_type
        self.size = size
        self.sha256 = sha256
        self.md5 = md5
        self.path = path

    def __eq__(self, other: object) -> bool:
        """Files are equal if their ids are."""
        return isinstance(other, OutputFile) and self.id == other.id

    def __hash__(self) -> int:
        """Return the hash of the id."""
        return hash(self.id)

    def __repr__(self) -> str:
        """For people who debug; the id is a secret and not in it."""
        return f"OutputFile({self.name!r}, {self.size} bytes)"

    @property
    def address(self) -> str:
        """Its path in URLs."""
        return f"/outputs/{self.id}/{self.name}"


def pack(value: Any) -> msgspec.msgpack.Ext:
    """The hook for msgpack encoders.

    Raises:
        TypeError: it is no file either, so the value has no place in JSON.
    """
    if not isinstance(value, OutputFile):
        refuse(value)
    fields = [getattr(value, name) for name in OutputFile.__slots__]
    return msgspec.msgpack.Ext(_CODE, msgspec.msgpack.encode(fields))


def unpack(code: int, data: memoryview) -> OutputFile:
    """The hook for msgpack decoders.

    Raises:
        ValueError: it is nothing that ``pack`` wrote.
    """
    if code != _CODE:
        raise ValueError(f"extension {code} is not known")
    fields: list[Any] = msgspec.msgpack.decode(data)
    return OutputFile(**dict(zip(OutputFile.__slots__, fields, strict=True)))


def refuse(value: Any) -> Any:
    """The hook where no files may be: every other foreign object is refused.

    Raises:
        TypeError: always.
    """
    raise TypeError(f"an object of type {type(value).__name__} is no data")
