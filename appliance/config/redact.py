"""Redaction of secrets in a config that is shown to people."""

from __future__ import annotations

import re
from typing import Any, Final

from appliance.domain.section import Section

#: Replacement of a secret.
HIDDEN: Final = "**********"

#: Keys whose values are mappings from public names to secrets.
_MAPPINGS: Final = frozenset({"environment", "headers"})
#: Words in a key, or in a parameter of a URL, that mark its value as a secret.
_SECRETS: Final = frozenset(
    {"authorization", "credential", "credentials", "password", "secret", "signature", "token"}
)
_USER: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PARAMETER: Final = re.compile(r"(?<=[?&])([^=&#\s]+)=([^&#\s]+)")


def redact(section: Section) -> dict[str, Any]:
    """Return all keys of ``section``, including defaults, as JSON values with secrets hidden.

    Secrets are: the values of environment variables and headers; values whose key contains a word of
    ``_SECRETS``; user names, passwords and tokens in URLs. The path of a key file is not secret.
    """
    redacted: dict[str, Any] = _redact("", section.model_dump(mode="json"))
    return redacted


def _redact(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        if key in _MAPPINGS:
            return dict.fromkeys(value, HIDDEN)
        return {name: _redact(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_redact(key, inner) for inner in value]
    if not isinstance(value, str):
        return value
    if _is_secret(key):
        return HIDDEN
    return _PARAMETER.sub(
        lambda found: f"{found[1]}={HIDDEN}" if _is_secret(found[1]) else found[0], _USER.sub(HIDDEN, value)
    )


def _is_secret(name: str) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    return not _SECRETS.isdisjoint(words) or "apikey" in "".join(words)
