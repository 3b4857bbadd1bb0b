"""Downloads one file over HTTP: resumes interrupted downloads and verifies the SHA-256."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from appliance.domain.errors import WeightsError
from appliance.protocols import content_encodings

#: Maximum attempts in a row that bring no new bytes.
ATTEMPTS: Final = 4
_PAUSE: Final = 1.0  # seconds before the second attempt; doubles

#: Called with the bytes downloaded so far and the total (None: unknown).
Advance = Callable[[int, int | None], None]


def sha256_of(file: Path) -> str:
    """The hash of a file, in lowercase hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fetch(client: httpx.Client, url: str, file: Path, sha256: str, advance: Advance) -> None:
    """Download ``url`` to ``file``, resuming if ``file`` exists.

    Raises:
        WeightsError: the download failed (the partial file is kept for the next attempt), or the hash differs
            (the file is removed).
    """
    resumed = file.exists()
    _complete(client, url, file, advance)
    found = sha256_of(file)
    if found != sha256 and resumed:  # the part from before may be of another file, or damaged
        file.unlink()
        _complete(client, url, file, advance)
        found = sha256_of(file)
    if found != sha256:
        file.unlink()
        raise WeightsError(
            f"{_name(url)} has the SHA-256 {found}, but models.yaml says {sha256}; "
            "correct the sha256, or find out why the file changed"
        )


def _complete(client: httpx.Client, url: str, file: Path, advance: Advance) -> None:
    """Connect until the whole file is here, or until nothing more comes."""
    attempt = 1
    while True:
        before = _length(file)
        try:
            return _connection(client, url, file, advance)
        except httpx.DecodingError as error:
            raise WeightsError(f"{_name(url)} cannot be fetched: {error}") from error
        except httpx.TransportError as error:
            attempt = attempt + 1 if _length(file) == before else 1
            if attempt > ATTEMPTS:
                raise WeightsError(
                    f"{_name(url)} cannot be fetched: {str(error) or type(error).__name__}; "
                    f"{_length(file):,} bytes are kept, the next try goes on from there"
                ) from error
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        except httpx.HTTPStatusError as error:
            raise WeightsError(
                f"{_name(url)} cannot be fetched: "
                f"{error.request.url.host} answered {error.response.status_code}"
            ) from error


def _connection(client: httpx.Client, url: str, file: Path, advance: Advance) -> None:
    """Download one response. A server without range support sends the file from its beginning."""
    have = _length(file)
    # Compressed, the bytes of a range would not be those of the file.
    headers = {**content_encodings.IDENTITY, **({"Range": f"bytes={have}-"} if have else {})}
    with client.stream("GET", url, headers=headers) as response:
        if have and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing lies beyond what is here; the hash says whether it is right
        response.raise_for_status()
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if goes_on else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        advance(have, total)
        with file.open("ab" if goes_on else "wb") as opened:
            for chunk in response.iter_raw():  # as they come: what a break interrupts is on disk up to there
                opened.write(chunk)
                have += len(chunk)
                advance(have, total)


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
