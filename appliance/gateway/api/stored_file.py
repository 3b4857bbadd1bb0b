"""Responses with stored files, which may be encrypted, or in a bucket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.open_content import OpenContent

_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_PART: Final = r"(\d{1,19}-\d{0,19}|-\d{1,19})"
_RANGES: Final = re.compile(rf"bytes=\s*{_PART}(\s*,\s*{_PART})*\s*")


async def respond(
    request: Request,
    files: FileStore,
    path: Path,
    *,
    media_type: str,
    headers: Mapping[str, str],
    filename: str | None = None,
    disposition: str = "attachment",
) -> Response:
    """Return the response for a GET or HEAD of a stored file, whole or a range of it.

    With encryption or a bucket, only one range is sent; a request for several gets the whole file.

    Raises:
        OutputRemoved: the file was deleted.
        BucketUnavailable: the content is in a bucket that does not answer.
    """
    header = _valid_range(request)
    if files.local_only:
        # Without the file, `open` below raises the error that fits.
        with contextlib.suppress(FileNotFoundError):
            stat = await asyncio.to_thread(path.stat)
            return FileResponse(
                path,
                headers=headers,
                media_type=media_type,
                filename=filename,
                stat_result=stat,
                content_disposition_type=disposition,
            )
    content = await files.open(path)
    etag = _etag(files, path, content.size)
    sent = {**headers, "accept-ranges": "bytes", "etag": etag}
    if filename is not None:
        sent["content-disposition"] = f"{disposition}; filename*=utf-8''{quote(filename, safe='')}"
    asked = _range(header, content.size) if request.headers.get("if-range", etag) == etag else None
    if asked == ():
        content.close()
        return Response(status_code=416, headers={**sent, "content-range": f"bytes */{content.size}"})
    start, end = asked or (0, content.size)
    if asked:
        sent["content-range"] = f"bytes {start}-{end - 1}/{content.size}"
    sent["content-length"] = str(end - start)
    status = 206 if asked else 200
    if request.method == "HEAD":
        content.close()
        return Response(status_code=status, headers=sent, media_type=media_type)
    return StreamingResponse(_pieces(content, start, end), status, sent, media_type)


def _etag(files: FileStore, path: Path, size: int) -> str:
    """Return the ETag of a file: its path, because the content at a path never changes."""
    text = f"{path.relative_to(files.folder)} {size}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def _valid_range(request: Request) -> str:
    """Return the Range header; remove one that is not valid from the request, and return an empty text.

    Then the whole file is sent, as RFC 9110, section 14.2, permits. Starlette's ``FileResponse`` would
    respond with an error as plain text.
    """
    header = request.headers.get("range", "")
    if _RANGES.fullmatch(header) is not None and all(
        int(start) <= int(end) for start, end in re.findall(r"(\d+)-(\d+)", header)
    ):
        return header
    request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    return ""


async def _pieces(content: OpenContent, start: int, end: int) -> AsyncIterator[bytes]:
    try:
        async for piece in content.pieces(start, end):
            yield piece
    finally:
        content.close()


def _range(header: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """Return the first byte of a range and the byte after its last; None for the whole file.

    An empty tuple stands for a range that the file does not have.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        start, end = max(size - int(found[2]), 0), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
    return (start, end) if start < end else ()
