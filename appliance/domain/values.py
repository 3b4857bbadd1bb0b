"""The value types of models.yaml: sizes, durations, names, URLs and paths."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from appliance.domain import access

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1024 * GIB,
}
_LARGEST: Final = 2**63 - 1  # bytes or seconds; databases and msgpack hold integers of 64 bits
_SIZE: Final = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")
_NUMBER: Final = r"\d+(?:\.\d+)?"
_DURATION: Final = re.compile(
    rf"(?=.)(?:({_NUMBER})d)?(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?(?:({_NUMBER})ms)?"
)
_DURATION_UNITS: Final = (86400.0, 3600.0, 60.0, 1.0, 0.001)  # seconds, in the order of the groups above
_SEGMENT: Final = r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?"
_NAME: Final = re.compile(rf"{_SEGMENT}/{_SEGMENT}")
_SHORT_NAME: Final = re.compile(r"(?![0-9a-f]{64}$)[A-Za-z0-9]([A-Za-z0-9:._-]{0,98}[A-Za-z0-9])?")
_ALIAS: Final = re.compile(rf"(?:{_NAME.pattern}|{_SHORT_NAME.pattern})")
_DEVICE: Final = re.compile(r"[a-z0-9]([a-z0-9:._-]*[a-z0-9])?")
_VARIABLE: Final = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\}?)")
_PUBLIC_URL: Final = re.compile(r"https?://[^\s/?#]+(/[A-Za-z0-9._~-]+)*/?")
_SYSLOG: Final = re.compile(r"udp://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})|/[^\0]*[^\0/]")
_BUCKET_URL: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?")
#: No part may have a character that begins another one. A password with an unencoded "/", "?" or "@" would
#: not be recognized as a password, and would be shown.
_POSTGRES_URL: Final = re.compile(
    r"postgres(ql)?://([^\s/?#@:]*(:[^\s/?#@]*)?@)?[^\s/?#@]*(/[^\s/?#@]*)?"
    r"(\?([^\s?#@&=]+=[^\s?#@&=]*(&[^\s?#@&=]+=[^\s?#@&=]*)*)?)?"
)
_HTTP_URL: Final = re.compile(r"https?://[^\s/?#]+[^\s]*")


def bytes_of(value: object) -> int:
    """Convert an integer or text such as ``12GiB`` to a number of bytes, at least 1."""
    size: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        product = float(match[1]) * _UNITS[match[2]]
        size = int(product) if product <= _LARGEST else None
    if size is None or not 1 <= size <= _LARGEST:
        raise PydanticCustomError(
            "size", 'should be a number of bytes over 0 or a size such as "12GiB" or "500MB"'
        )
    return size


def seconds_of(value: object) -> float:
    """Convert a number or text such as ``30s``, ``5m`` or ``1h30m`` to seconds, at least 0."""
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= _LARGEST else None
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = sum(
            float(number) * unit
            for number, unit in zip(match.groups(), _DURATION_UNITS, strict=True)
            if number
        )
    if seconds is None or not 0 <= seconds < float("inf"):
        raise PydanticCustomError(
            "duration", 'should be a number of seconds or a duration such as "30s", "5m" or "1h30m"'
        )
    return seconds


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise PydanticCustomError(
            "name",
            'should be "owner/name", each of lowercase letters, digits, and between them "-", "_" or "."',
        )
    return value


def _model_pattern(value: str) -> str:
    if not access.PATTERN.fullmatch(value):
        raise PydanticCustomError(
            "pattern", 'should be the name of a model, a pattern such as "owner/*", or "*" for all models'
        )
    return value


def _alias(value: str) -> str:
    if not _ALIAS.fullmatch(value):
        raise PydanticCustomError(
            "name",
            'should be "owner/name", each of lowercase letters, digits, and between them "-", "_" or ".", '
            'or, for the OpenAI and Anthropic APIs only, up to 100 letters, digits, and between them "-", '
            '"_", "." or ":", such as gpt-4o-mini',
        )
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise PydanticCustomError(
            "name",
            'should be of lowercase letters, digits, and between them "-", "_", "." or ":", such as "gpu:0"',
        )
    return value


def _syslog(value: str) -> str:
    match = _SYSLOG.fullmatch(value)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise PydanticCustomError(
            "syslog", "should be udp://host:port, or the absolute path of a Unix socket such as /dev/log"
        )
    return value


def _http_url(value: str) -> str:
    if not _HTTP_URL.fullmatch(value):
        raise PydanticCustomError("http_url", 'should be a URL that begins with "http://" or "https://"')
    return value.rstrip("/")


def _bucket_url(value: str) -> str:
    if not _BUCKET_URL.fullmatch(value):
        raise PydanticCustomError(
            "bucket_url", 'should be a URL such as "s3://bucket" or "s3://bucket/prefix", without a query'
        )
    return value.rstrip("/")


def _postgres_url(value: str) -> str:
    try:
        parts = urlsplit(value)
    except ValueError:  # brackets of an IPv6 address that do not match
        parts = None
    encoded = parts is not None and not re.search("%(?![0-9A-Fa-f]{2})", value)
    if not encoded or not _POSTGRES_URL.fullmatch(value):
        raise PydanticCustomError(
            "postgres_url",
            'should be a URL such as "postgresql://user@host:5432/database", with special characters '
            "encoded, such as %40 for @ and %2F for /",
        )
    return value


def _issuer(value: str) -> str:
    _http_url(value)
    return value  # with a slash at the end, if the provider writes one


def _public_url(value: str) -> str:
    if not _PUBLIC_URL.fullmatch(value):
        raise PydanticCustomError(
            "public_url",
            'should be a URL that begins with "http://" or "https://", has no query, and has only letters, '
            'digits, ".", "_", "~" and "-" between the slashes of its path',
        )
    return value.rstrip("/")


def _path(value: object, info: ValidationInfo) -> Path:
    """Return an absolute path; a relative path is relative to the folder of the config file."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("path", "should be a path, written as text")
    if variable := _VARIABLE.search(value):
        raise PydanticCustomError(
            "path",
            "contains {variable}: write environment variables as ${NAME}, "
            'or begin the path with "~" for the home folder',
            {"variable": variable[0]},
        )
    if "\0" in value:
        raise PydanticCustomError("path", "contains the character U+0000, which is not allowed in paths")
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # ~user where there is no such user
        raise PydanticCustomError("path", "begins with the home folder of an unknown user") from error
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder / path


def _path_or_url(value: object, info: ValidationInfo) -> str:
    """Return an https URL, or an absolute path as text."""
    if isinstance(value, str) and value.startswith("https://") and _HTTP_URL.fullmatch(value):
        return value
    if isinstance(value, str) and "://" in value:
        raise PydanticCustomError("path_or_url", 'should be a path, or a URL that begins with "https://"')
    return str(_path(value, info))


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise PydanticCustomError(
            "network", 'should be a network such as "10.0.0.0/8", "127.0.0.1/32" or "fd00::/8"'
        ) from error


def _pattern(pattern: re.Pattern[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern.pattern}$"})


Bytes = Annotated[
    int,
    BeforeValidator(bytes_of),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_SIZE.pattern}$"}]}
    ),
]
Seconds = Annotated[
    float,
    BeforeValidator(seconds_of),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}
    ),
]
ModelName = Annotated[str, AfterValidator(_name), _pattern(_NAME)]
ModelPattern = Annotated[str, AfterValidator(_model_pattern), _pattern(access.PATTERN)]
Alias = Annotated[str, AfterValidator(_alias), _pattern(_ALIAS)]
DeviceName = Annotated[str, AfterValidator(_device), _pattern(_DEVICE)]
NetworkName = Annotated[str, AfterValidator(_network)]
SyslogAddress = Annotated[str, AfterValidator(_syslog), _pattern(_SYSLOG)]
BucketUrl = Annotated[str, AfterValidator(_bucket_url), _pattern(_BUCKET_URL)]
PostgresUrl = Annotated[str, AfterValidator(_postgres_url), _pattern(_POSTGRES_URL)]
HttpUrl = Annotated[str, AfterValidator(_http_url), _pattern(_HTTP_URL)]
IssuerUrl = Annotated[str, AfterValidator(_issuer), _pattern(_HTTP_URL)]
PublicUrl = Annotated[str, AfterValidator(_public_url), _pattern(_PUBLIC_URL)]
PathOrUrl = Annotated[str, BeforeValidator(_path_or_url), WithJsonSchema({"type": "string", "minLength": 1})]
FilePath = Annotated[Path, BeforeValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})]
