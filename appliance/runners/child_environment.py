"""Environment variables of child processes that run the code of Cog projects."""

from __future__ import annotations

import os
from typing import Final

#: Secrets of the appliance and its operator. A Cog project gets only those in its option ``environment``.
_SECRETS: Final = frozenset(
    {
        "APPLIANCE_TOKEN",
        "REPLICATE_API_TOKEN",  # a project gets its own token for each prediction
        "RAY_AUTH_TOKEN",  # allows its holder to run code in every process of Ray
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    }
)


def without_secrets() -> dict[str, str]:
    """Return the environment variables of this process, except secrets."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}
