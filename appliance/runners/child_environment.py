"""Environment variables of child processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

#: Secrets of the appliance and its operator. A Cog project gets only those in its option ``environment``.
_SECRETS: Final = frozenset(
    {
        "APPLIANCE_CLUSTER_TOKEN",
        "APPLIANCE_ENCRYPTION_KEY",
        "APPLIANCE_TOKEN",
        "AWS_ACCESS_KEY_ID",  # without its secret, it would only confuse programs
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "AWS_SESSION_TOKEN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "REPLICATE_API_TOKEN",  # a project gets its own token for each prediction
        "RAY_AUTH_TOKEN",  # allows its holder to run code in every process of Ray
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    }
)
#: Those that downloads of weights need.
_HUB: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: The further variables that ``hide`` got in this process.
_hidden: set[str] = set()


def hide(names: Iterable[str]) -> None:
    """Treat further variables as secrets from now on, such as those to which secrets in models.yaml refer."""
    _hidden.update(names)


def take_secrets() -> dict[str, str]:
    """Remove the variables with secrets from the environment of this process, and return them.

    The exception is ``RAY_AUTH_TOKEN``, which all processes of Ray need.
    """
    taken = sorted(((_SECRETS | _hidden) - {"RAY_AUTH_TOKEN"}) & os.environ.keys())
    return {name: os.environ.pop(name) for name in taken}


def without_secrets() -> dict[str, str]:
    """Return the environment variables of this process, except secrets."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS | _hidden}


def hub_secrets() -> dict[str, str]:
    """Return the secrets in the environment of this process that downloads of weights need."""
    return {name: os.environ[name] for name in _HUB if name in os.environ}
