"""Downloads a file over HTTP, resumes after interruptions, and verifies the SHA-256."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from appliance.domain.errors import WeightsError
from appliance.domain.units import readable_bytes
from appliance.protocols import content_encodings

#: Maximum attempts in a row that receive no bytes.
ATTEMPTS: Final = 4
_PAUSE: Final = 1.0  # seconds before the second attempt; doubles

#: Called with the number of bytes downloaded so far, and of the whole file (None: unknown).
Advance = Callable[[int, int | None], None]


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in lowercase hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fetch(
    client: httpx.Client,
    url: str,
    file: Path,
    sha256: str,
    advance: Advance,
    *,
    listed_in: str = "models.yaml",
) -> None:
    """Download ``url`` to ``file``, resuming if ``file`` exists.

    ``listed_in`` names the source of ``sha256`` in an error.

    Raises:
        WeightsError: the download failed (the partial file is kept for the next attempt), or the hash differs
            (the file is removed).
    """
    resumed = file.exists()
    _complete(client, url, file, advance)
    found = sha256_of(file)
    if found != sha256 and resumed:  # the resumed file may have been damaged, or part of another file
        file.unlink()
        _complete(client, url, file, advance)
        found = sha256_of(file)
    if found != sha256:
        file.unlink()
        raise WeightsError(
            f"{_name(url)} has the SHA-256 {found}, but {listed_in} says {sha256}: "
            "correct the sha256, or find out why the file changed"
        )


def _complete(client: httpx.Client, url: str, file: Path, advance: Advance) -> None:
    """Repeat the request until the file is complete, or ``ATTEMPTS`` attempts in a row receive no bytes."""
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
                    f"{readable_bytes(_length(file))} are kept, and the next download resumes there"
                ) from error
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        except httpx.HTTPStatusError as error:
            status = f"{error.request.url.host} returned the HTTP status {error.response.status_code}"
            raise WeightsError(f"{_name(url)} cannot be fetched: {status}") from error


def _connection(client: httpx.Client, url: str, file: Path, advance: Advance) -> None:
    """Send one request for the rest of the file. A server without range support sends the whole file."""
    have = _length(file)
    # IDENTITY, because a range of a compressed response is not a range of the file.
    headers = {**content_encodings.IDENTITY, **({"Range": f"bytes={have}-"} if have else {})}
    with client.stream("GET", url, headers=headers) as response:
        if have and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the file is complete; the caller checks its hash
        response.raise_for_status()
        resumes = response.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if resumes else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        advance(have, total)
        with file.open("ab" if resumes else "wb") as opened:
            for chunk in response.iter_raw():  # as received, so that an interruption loses nothing
                opened.write(chunk)
                have += len(chunk)
                advance(have, total)


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
