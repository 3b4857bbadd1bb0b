"""The environment variables from which models.yaml takes secrets, such as ``${S3_SECRET}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from appliance.config import variables
from appliance.config.redact import secret_keys
from appliance.config.yaml_source import Document, Place

#: Keys that ``redact`` does not hide, but whose variables child processes must not inherit.
_FURTHER_KEYS: Final = frozenset({"files.s3.access_key_id"})
#: Variables that every process needs.
_NEEDED: Final = frozenset({"HOME", "LOGNAME", "PATH", "USER"})
#: Words that mark the name of a variable as secret. Used only for ``environment`` of a model, where most
#: variables, such as ``${LD_LIBRARY_PATH}``, are not secret.
_WORDS: Final = re.compile(
    r"(?:(?:^|_)(?:api_?key|auth|credentials?|dsn|keys?|pass|pat)|passwd|password|pwd|secrets?|tokens?)(?:_|\d|$)",
    re.IGNORECASE,
)
_CREDENTIALS: Final = re.compile(r"://[^/\s@]+@")  # in a URL


def secret_variables(document: Document, environment: Mapping[str, str]) -> set[str]:
    """Return the names of the variables to which secrets in a config file refer."""
    found: set[str] = set()
    for place, written in document.written.items():
        keys = [part for part in place if isinstance(part, str)]
        names = variables.names(written)
        if keys[-2:-1] == ["environment"] and keys[:-1] != ["models", "environment"]:
            names = {
                name
                for name in names
                if any(map(_WORDS.search, (name, keys[-1]))) or _CREDENTIALS.search(environment.get(name, ""))
            }
        secrets = _secrets(keys, str(_value(document.data, place)))
        for name in names - _NEEDED:
            value = environment.get(name)
            if value and any(value in secret or secret in value for secret in secrets):
                found.add(name)
    return found


def _secrets(keys: list[str], value: str) -> list[str]:
    """Return the secrets in the value of a key: the whole value, or the secret parts of a URL."""
    if ".".join(keys) in _FURTHER_KEYS:
        return [value]
    if keys[-1].endswith("_file"):  # the path of a file is no secret
        return []
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return [secret for _, secret in secret_keys(nested)]


def _value(data: Any, place: Place) -> Any:
    for part in place:
        data = data[part]
    return data
