"""The environment of child processes that run other people's code."""

from __future__ import annotations

import os
from typing import Final

#: Secrets of the appliance and its operator. A Cog project that needs one of them gets it by its option
#: ``environment``.
_SECRETS: Final = frozenset(
    {
        "APPLIANCE_TOKEN",
        "REPLICATE_API_TOKEN",  # a project gets a token of its own for each prediction
        "RAY_AUTH_TOKEN",  # whoever has it may run code in every process of Ray
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    }
)


def without_secrets() -> dict[str, str]:
    """This process's environment without secrets of the appliance; everything else is passed on."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}
