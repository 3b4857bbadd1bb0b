"""A config as it may be shown to people: everything in effect, and no secret."""

from __future__ import annotations

import re
from typing import Any, Final

from appliance.domain.section import Section

#: What stands in place of a secret.
HIDDEN: Final = "**********"

#: Keys whose values are mappings from names, which may be shown, to secrets.
_MAPPINGS: Final = frozenset({"environment", "headers"})
#: Words of a key, or of a parameter of an address, whose value is a secret.
_SECRETS: Final = frozenset(
    {"authorization", "credential", "credentials", "password", "secret", "signature", "token"}
)
_USER: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PARAMETER: Final = re.compile(r"(?<=[?&])([^=&#\s]+)=([^&#\s]+)")


def redact(section: Section) -> dict[str, Any]:
    """Every key of ``section``, defaults too, as plain JSON values.

    Hidden are values of environments and headers, values whose key says that they are secret, and user names,
    passwords and tokens in addresses. Paths of files that hold a key are shown: the file is the secret.
    """
    shown: dict[str, Any] = _redact("", section.model_dump(mode="json"))
    return shown


def _redact(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        if key in _MAPPINGS:
            return dict.fromkeys(value, HIDDEN)
        return {name: _redact(name, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_redact(key, part) for part in value]
    if not isinstance(value, str):
        return value
    if _secret(key):
        return HIDDEN
    return _PARAMETER.sub(
        lambda found: f"{found[1]}={HIDDEN}" if _secret(found[1]) else found[0], _USER.sub(HIDDEN, value)
    )


def _secret(name: str) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    return not _SECRETS.isdisjoint(words) or "apikey" in "".join(words)
