"""Parser of multipart forms that holds no file in memory: it yields pieces as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from appliance.domain.errors import BodyTooLarge, MalformedBody
from appliance.gateway.api import requests

#: Maximum size of a form in bytes, without the content of its files.
FIELDS: Final = 256 * 1024
_HEADERS: Final = 16 * 1024  # bytes of one part's headers


class FormPart(NamedTuple):
    """The name and headers of a part of a form, which precede its content."""

    name: str  # of the field
    filename: str | None
    content_type: str | None


class Piece(NamedTuple):
    """A piece of the content of the latest ``FormPart``."""

    data: bytes


class _Collector:
    """Callbacks of the multipart parser, which collect parts and pieces in ``found``."""

    def __init__(self) -> None:
        self.found: list[FormPart | Piece] = []
        self.complete = False
        self._headers: dict[str, str] = {}
        self._name = b""
        self._value = b""

    def begin(self) -> None:
        self._headers, self._name, self._value = {}, b"", b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode(errors="replace")
        self._name, self._value = b"", b""
        if sum(len(name) + len(value) for name, value in self._headers.items()) > _HEADERS:
            raise MalformedBody(f"A part of the form has more than {_HEADERS:,} bytes of headers")

    def headers_finished(self) -> None:
        disposition = self._headers.get("content-disposition", "")
        _, options = parse_options_header(disposition.encode())
        name, filename = options.get(b"name"), options.get(b"filename")
        self.found.append(
            FormPart(
                "" if name is None else name.decode(errors="replace"),
                None if filename is None else filename.decode(errors="replace"),
                self._headers.get("content-type"),
            )
        )

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.found.append(Piece(data[start:end]))

    def end(self) -> None:
        self.complete = True


async def parts(request: Request, files: int) -> AsyncIterator[FormPart | Piece]:
    """Yield the parts of a ``multipart/form-data`` request, in order.

    ``files`` is the maximum size of all its files together, in bytes.

    Raises:
        BodyTooLarge: the form, or its ``Content-Length``, is over ``files`` plus ``FIELDS`` bytes.
        MalformedBody: the body is not a multipart form, is truncated, or has too many parts.
    """
    requests.check_encoding(request)
    if requests.content_length(request) > files + FIELDS:
        raise _too_large(files)
    kind, options = parse_options_header(request.headers.get("content-type", "").encode())
    boundary = options.get(b"boundary")
    if kind.lower() != b"multipart/form-data" or not boundary:
        raise MalformedBody("The request body must be multipart/form-data with a boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.header_name,
                "on_header_value": collector.header_value,
                "on_header_end": collector.header_end,
                "on_headers_finished": collector.headers_finished,
                "on_part_data": collector.part_data,
                "on_end": collector.end,
            },
        )
        received = content = 0
        async for chunk in request.stream():
            received += len(chunk)
            parser.write(chunk)
            for found in collector.found:
                content += len(found.data) if isinstance(found, Piece) else 0
                yield found
            collector.found.clear()
            if received > files + FIELDS:
                raise _too_large(files)
            if received - content > FIELDS:
                raise MalformedBody(
                    f"The form has more than {FIELDS:,} bytes of boundaries and headers: send fewer parts"
                )
    except FormParserError as error:
        raise MalformedBody(f"The form cannot be read: {error}") from error
    except ClientDisconnect as error:
        raise MalformedBody("The connection closed before the body was complete") from error
    if not collector.complete:
        raise MalformedBody("The form is truncated: it ends before its last boundary")


def too_long() -> MalformedBody:
    """Return the error for a form that has over ``FIELDS`` bytes without the content of its files."""
    return MalformedBody(f"The fields of the form other than its files are over {FIELDS:,} bytes")


def _too_large(files: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The form is over {files + FIELDS:,} bytes: its files may have {files:,} together "
        f"(files.max_upload in models.yaml), and its other fields {FIELDS:,}"
    )
