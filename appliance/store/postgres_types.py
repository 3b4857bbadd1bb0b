"""Converts values between Python and PostgreSQL as SQLite does. Imported only if PostgreSQL is used.

- A text may contain the character NUL, which PostgreSQL refuses: it is escaped in the database.
- The type of a number column decides how a boolean is stored: as 0 or 1.
- A BYTEA column has msgpack, or JSON as ``rows.JsonText`` behind a byte that msgpack never uses.
- A number that is NaN is refused: SQLite would store NULL.
- Sums of integers are integers, not decimals.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

from psycopg import adapters, postgres
from psycopg.adapt import AdaptersMap, Buffer, Dumper, Loader
from psycopg.pq import Format
from psycopg.types.numeric import FloatBinaryDumper, FloatDumper, NumericBinaryLoader

from appliance.store.rows import JsonText

_ESCAPE: Final = "\U0010ffff"  # a code point that is never assigned to a character
_NUL, _SELF = f"{_ESCAPE}0", f"{_ESCAPE}1"
_JSON: Final = b"\xc1"  # https://github.com/msgpack/msgpack/blob/master/spec.md: never used


def _oid(name: str) -> int:
    return postgres.types[name].oid


class _TextDumper(Dumper):
    oid = _oid("text")

    def dump(self, obj: str) -> Buffer:
        if "\0" in obj or _ESCAPE in obj:
            obj = obj.replace(_ESCAPE, _SELF).replace("\0", _NUL)
        return obj.encode()  # raises UnicodeEncodeError for lone surrogates, as sqlite3 does


class _TextBinaryDumper(_TextDumper):
    format = Format.BINARY


class _JsonTextDumper(Dumper):
    format = Format.BINARY
    oid = _oid("bytea")

    def dump(self, obj: JsonText) -> Buffer:
        return _JSON + obj.encode()


class _BooleanDumper(Dumper):
    oid = _oid("int4")

    def dump(self, obj: bool) -> Buffer:
        return b"1" if obj else b"0"


class _NumberDumper(FloatDumper):
    def dump(self, obj: float) -> Buffer | None:
        _refuse_nan(obj)
        return super().dump(obj)


class _NumberBinaryDumper(FloatBinaryDumper):
    def dump(self, obj: float) -> Buffer | None:
        _refuse_nan(obj)
        return super().dump(obj)


def _refuse_nan(number: float) -> None:
    if math.isnan(number):
        raise OverflowError("NaN is neither a time nor a number")  # as for an integer that is too large


class _TextLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        text = bytes(data).decode()
        return text.replace(_NUL, "\0").replace(_SELF, _ESCAPE) if _ESCAPE in text else text


class _BytesLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> bytes | str:
        value = bytes(data)
        return value[1:].decode() if value.startswith(_JSON) else value


class _IntegerLoader(NumericBinaryLoader):
    def load(self, data: Buffer) -> Any:
        value: Decimal = super().load(data)
        return int(value)


def _made() -> AdaptersMap:
    made = AdaptersMap(adapters)
    made.register_dumper(str, _TextDumper)
    made.register_dumper(str, _TextBinaryDumper)
    made.register_dumper(JsonText, _JsonTextDumper)
    made.register_dumper(bool, _BooleanDumper)
    made.register_dumper(float, _NumberDumper)
    made.register_dumper(float, _NumberBinaryDumper)
    made.register_loader("text", _TextLoader)
    made.register_loader("bytea", _BytesLoader)
    made.register_loader("numeric", _IntegerLoader)
    return made


ADAPTERS: Final = _made()
