"""Input files of predictions: downloaded, and passed to models as paths.

An input of ``format: uri`` may be a ``data:`` URL, an ``http(s)`` URL, or the URL of an upload or output file
of this appliance, with any hostname by which the caller reaches this appliance.

A file is fetched only once, even if the gateway restarts before its prediction has run, because the URL may
have expired by then. The folder of a file gets its name only when the file is complete.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import mimetypes
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import httpx
import msgspec

from appliance import weights
from appliance.domain.errors import (
    BucketUnavailable,
    ContentMissing,
    DiskFull,
    OutputRemoved,
    PredictionFailed,
    StoreError,
    UrlRefused,
    WeightsError,
)
from appliance.domain.file import File
from appliance.domain.interface import Interface
from appliance.domain.prediction import Prediction
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.file_store import FileStore
from appliance.protocols import content_encodings, media
from appliance.runners.adapters import hub_adapter, may_redirect, remote

_log = logging.getLogger(__name__)

#: Paths of URLs of this appliance's files. The path of ``server.public_url`` may precede them.
_OURS: Final = re.compile(r"(?:/.+)?(?:/files/([A-Za-z0-9]+)(?:/download)?/?|/outputs/([0-9a-f]{64})/[^/]+)")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_REDIRECTS: Final = 10
_FETCHED: Final = "fetched"  # folder in the folder of a prediction
_TIMEOUT: Final = 30.0  # seconds to connect, and between two chunks


class Inputs:
    """Fetches input files; used on the gateway's event loop only."""

    def __init__(self, files: FileStore, fetch_guard: FetchGuard, folder: Path, home: Path) -> None:
        """Download into ``folder``, whose files a restart does not delete, and adapters into ``home``."""
        self._files = files
        self._fetch_guard = fetch_guard
        self._folder = folder
        self._home = home

    async def fetch(
        self,
        record: Prediction,
        interface: Interface,
        input: dict[str, Any],
        adapters: Mapping[str, str] | None = None,
        adapter_sources: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return ``input`` with absolute paths in place of file URLs; ``discard`` deletes the files.

        ``adapters`` has the sources of the adapters to fetch, by the names of their inputs. Redirects of
        their URLs may lead only to hosts in ``adapter_sources`` of the model.

        Requests of OpenAI's and Anthropic's APIs get ``data:`` URLs in place of file URLs instead.

        Raises:
            PredictionFailed: a file cannot be downloaded; the message names the input.
        """
        folder = self._folder / record.id / _FETCHED
        fetched = dict(input)
        try:
            async with asyncio.timeout(self._files.config.input_timeout):
                if interface.verbatim:
                    return await self._embedded(record, input, folder)
                for name in interface.file_inputs:
                    if name in interface.file_lines:
                        fetched[name] = await self._lines(record, name, input.get(name), folder / name)
                    elif isinstance(input.get(name), str):
                        fetched[name] = await self._one(record, f"input.{name}", input[name], folder / name)
                    elif isinstance(input.get(name), list):
                        fetched[name] = [
                            await self._one(record, f"input.{name}.{at}", url, folder / name / str(at))
                            for at, url in enumerate(input[name])
                        ]
                for name, source in (adapters or {}).items():
                    fetched[name] = await self._adapter(f"input.{name}", source, adapter_sources)
        except TimeoutError as error:
            limit = self._files.config.input_timeout
            raise PredictionFailed(
                f"the input files were not downloaded within {limit:g} s (files.input_timeout in models.yaml)"
            ) from error
        return fetched

    async def discard(self, id: str) -> None:
        """Delete the files that were fetched for a prediction."""
        folder = self._folder / id
        if folder.exists():
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def keep_only(self, ids: Collection[str]) -> None:
        """Delete the files of all predictions except these (ids): an earlier gateway may have left them."""
        await asyncio.to_thread(_delete_others, self._folder, ids)

    async def _lines(
        self, record: Prediction, name: str, value: str | list[str] | None, folder: Path
    ) -> list[dict[str, str]]:
        """Return the lines of a text, without empty lines; lines that are HTTP URLs also have a file."""
        given = value.split("\n") if isinstance(value, str) else value or []
        lines = []
        for number, text in enumerate(map(str.strip, given), 1):
            line = {"text": text}
            if media.is_http_url(text):
                field = f"input.{name}, line {number}"
                line["file"] = await self._one(record, field, text, folder / str(number))
            if text:
                lines.append(line)
        return lines

    async def _embedded(self, record: Prediction, body: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a copy of ``body`` with ``data:`` URLs in place of the URLs of images and audio."""
        copy: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(body))
        for at, (holder, key) in enumerate(media.urls(copy)):
            path = await self._one(record, key, holder[key], folder / str(at))
            holder[key] = await asyncio.to_thread(_as_data, Path(path))
        return copy

    async def _one(self, record: Prediction, field: str, url: str, folder: Path) -> str:
        """Download one file into ``folder``, unless it is there already, and return its path.

        Raises:
            PredictionFailed: the file cannot be downloaded.
        """
        try:
            if url[:5].lower() == "data:":
                # Before the content is decoded: `discard` then finds the folder, and a later write fails.
                await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
                return await asyncio.to_thread(_written, url, folder)
            found = await asyncio.to_thread(_whole_file, folder)
            if found is not None:
                return str(found)
            unfinished = folder.with_name(f".{folder.name}")
            await asyncio.to_thread(_make_empty, unfinished)
            ours = await self._ours(url, record.owner)
            if ours is not None:
                path = unfinished / safe_name(ours.name)
                await self._copy(ours, path)
            else:
                path = Path(await self._download(url, unfinished))
            await asyncio.to_thread(_finish, path, folder)
            return str(folder / path.name)
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL, UrlRefused) as error:
            full = DiskFull.is_cause_of(error)
            reason = DiskFull().detail if full else str(error) or type(error).__name__
            short = url if len(url) < 200 else url[:200] + "..."
            raise PredictionFailed(f"{field}: {short} cannot be fetched: {reason}") from error

    async def _copy(self, file: File, target: Path) -> None:
        """Make ``target`` a hard link to a stored file, or a copy if it is encrypted or in a bucket.

        Raises:
            OSError: a file cannot be read or written.
            ValueError: the stored file is damaged, was deleted, or is in a bucket that does not answer.
        """
        stored = self._files.path(file)
        try:
            if self._files.local_only:
                # Without the file, `copy_content` below raises the error that fits.
                with contextlib.suppress(FileNotFoundError):
                    return await asyncio.to_thread(_link, stored, target)
            await self._files.copy_content(stored, target)
        except (BucketUnavailable, ContentMissing, OutputRemoved) as error:
            raise ValueError(error.detail) from error
        except StoreError as error:  # its text has the path, which clients must not see
            _log.error("an input file of a prediction cannot be read: %s", error)
            raise ValueError("the stored file is damaged: upload or create it again") from error

    async def _adapter(self, field: str, value: str, allowed: Sequence[str]) -> str:
        """Return the path of an adapter from a source that the model allows. It is downloaded once.

        Raises:
            PredictionFailed: the adapter cannot be downloaded.
        """
        source = remote(value)
        assert source is not None, "the source was checked when the prediction was created"
        try:
            if source.url is None:
                adapter = hub_adapter(source)
                return str(await asyncio.to_thread(weights.pull, self._home, adapter))
            folder = self._home / "weights" / "adapters"
            name = safe_name(PurePosixPath(urlsplit(source.url).path).name)
            target = folder / f"{hashlib.sha256(source.url.encode()).hexdigest()[:16]}-{name}"
            if not target.exists():
                partial = self._home / "weights" / ".partial"
                for place in (folder, partial):
                    await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=partial) as unfinished:
                    file = await self._download(source.url, Path(unfinished), redirect_hosts=allowed)
                    await asyncio.to_thread(os.replace, file, target)
            return str(target)
        except WeightsError as error:
            raise PredictionFailed(f"{field}: {value} cannot be fetched: {error.detail}") from error
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL, UrlRefused) as error:
            reason = str(error) or type(error).__name__
            raise PredictionFailed(f"{field}: {value} cannot be fetched: {reason}") from error

    async def _ours(self, url: str, owner: str) -> File | None:
        match = _OURS.fullmatch(urlsplit(url).path)
        if match is None:
            return None
        return await (self._files.upload(match[1], owner) if match[1] else self._files.output(match[2]))

    async def _download(self, url: str, folder: Path, *, redirect_hosts: Sequence[str] | None = None) -> str:
        """Download ``url`` into ``folder``; return the path of the file.

        Redirects may lead only to the hosts of the URLs ``redirect_hosts``, or to any host if it is None.
        """
        limit = self._files.config.max_input
        path = folder / safe_name(PurePosixPath(urlsplit(url).path).name)
        client = self._fetch_guard.client(_TIMEOUT, redirects=_REDIRECTS)
        if redirect_hosts is not None:

            async def check(request: httpx.Request) -> None:  # called for the URL and for each redirect
                if not may_redirect(str(request.url), redirect_hosts):
                    raise UrlRefused(
                        f"it is redirected to {request.url.scheme}://{request.url.netloc.decode()}, which "
                        "adapter_sources of the model does not allow: add a URL of this host"
                    )

            client.event_hooks = {"request": [check]}
        async with client, client.stream("GET", url) as reply:
            if not reply.is_success:
                raise ValueError(f"HTTP {reply.status_code}")
            decoder = content_encodings.Decoder(content_encodings.of(reply))
            with path.open("wb") as file:
                async for chunk in reply.aiter_raw(1024 * 1024):
                    await asyncio.to_thread(_append, file, decoder.feed(chunk), limit)
            decoder.end()
        return str(path)


def safe_name(name: str) -> str:
    """Return ``name`` without characters that have a meaning in a shell, a path or a header."""
    cleaned = _UNSAFE.sub("-", name).strip("-").lstrip(".")
    return cleaned[-100:] or "file"


def _append(file: BinaryIO, pieces: Iterable[bytes], limit: int) -> None:
    for piece in pieces:
        if file.tell() + len(piece) > limit:
            raise ValueError(f"it is over {limit:,} bytes (files.max_input in models.yaml)")
        file.write(piece)


def _written(url: str, folder: Path) -> str:
    """Write the content of a ``data:`` URL to a file; return the path of the file."""
    kind, data = media.from_data(url)
    path = folder / f"file{mimetypes.guess_extension(kind) or ''}"
    path.write_bytes(data)
    return str(path)


def _delete_others(folder: Path, ids: Collection[str]) -> None:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in ids:
                shutil.rmtree(entry.path, ignore_errors=True)


def _whole_file(folder: Path) -> Path | None:
    """Return the file in ``folder``, which an earlier gateway has fetched; None if there is none."""
    try:
        with os.scandir(folder) as entries:
            files = [Path(entry) for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return None
    return files[0] if len(files) == 1 else None


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(file: Path, folder: Path) -> None:
    """Flush ``file`` to the disk, and rename its folder to ``folder``."""
    with file.open("rb") as written:
        os.fsync(written.fileno())  # else the file might be incomplete after a power failure
    shutil.rmtree(folder, ignore_errors=True)
    file.parent.rename(folder)


def _as_data(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to, or a copy of, ``source``; ``target`` outlives ``source``."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
