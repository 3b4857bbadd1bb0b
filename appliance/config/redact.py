"""Redaction of secrets in a config that is shown to people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from appliance.domain.section import Section

#: Replacement of a secret.
HIDDEN: Final = "**********"

#: Keys whose values are mappings from public names to secrets.
_MAPPINGS: Final = frozenset({"environment", "headers"})
#: Words in a key, or in a parameter of a URL, that mark its value as a secret.
_SECRETS: Final = frozenset(
    {"authorization", "credential", "credentials", "password", "secret", "signature", "sslpassword", "token"}
)
#: Characters of a secret that is searched in other texts, where shorter ones are common.
_SHORTEST: Final = 6
#: User and password in a URL.
CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PARAMETER: Final = re.compile(r"(?<=[?&])([^=&#\s]+)=([^&#\s]+)")


def redact(section: Section) -> dict[str, Any]:
    """Return all keys of ``section``, including defaults, as JSON values with secrets hidden.

    Secrets are: the values of environment variables and headers; values whose key contains a word of
    ``_SECRETS``; user names, passwords and tokens in URLs. The path of a key file is not secret.
    """
    redacted: dict[str, Any] = _redact("", section.model_dump(mode="json"))
    return redacted


def _redact(key: str, value: Any) -> Any:
    """Hide the secrets in ``value``, which is at the dotted path ``key``."""
    name = key.rpartition(".")[2]
    if isinstance(value, dict):
        if _is_mapping(key):
            return dict.fromkeys(value, HIDDEN)
        return {inner: _redact(f"{key}.{inner}" if key else inner, each) for inner, each in value.items()}
    if isinstance(value, list):
        return [_redact(key, inner) for inner in value]
    if not isinstance(value, str):
        return value
    if _is_secret(name):
        return HIDDEN
    return _PARAMETER.sub(
        lambda found: f"{found[1]}={HIDDEN}" if _is_secret(found[1]) else found[0],
        CREDENTIALS.sub(HIDDEN, value),
    )


def secrets(section: Section, environment: Mapping[str, str]) -> set[str]:
    """Return the secrets in ``section`` and in environment variables, except those of a few characters."""
    found = {secret for _, secret in secret_keys(section.model_dump(mode="json"))}
    found |= {value for name, value in environment.items() if _is_secret(name.replace("_", "-"))}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def secret_keys(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a config file, such as ``telemetry.headers.x``, whose texts ``redact`` would hide.

    ``value`` is the content of the file. Each key comes with its secret: the whole text, or
    the user or a parameter of a URL.
    """
    name = key.rpartition(".")[2]
    if isinstance(value, dict):
        for inner, each in value.items():
            path = f"{key}.{inner}" if key else str(inner)
            if _is_mapping(key) and isinstance(each, str):
                yield path, each
            else:
                yield from secret_keys(each, path)
    elif isinstance(value, list):
        for each in value:
            yield from secret_keys(each, key)
    elif isinstance(value, str) and _is_secret(name):
        yield key, value
    elif isinstance(value, str):
        yield from ((key, found) for found in CREDENTIALS.findall(value))
        yield from ((key, secret) for parameter, secret in _PARAMETER.findall(value) if _is_secret(parameter))


def _is_mapping(key: str) -> bool:
    """Return whether the values at the dotted path ``key`` are secrets.

    The key ``environment`` of a model is a section: packages and a version of Python.
    """
    return key.rpartition(".")[2] in _MAPPINGS and key not in {"environment", "models.environment"}


def _is_secret(name: str) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    return not _SECRETS.isdisjoint(words) or "apikey" in "".join(words)
