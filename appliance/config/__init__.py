"""models.yaml, the one config file: read, checked once, and frozen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from appliance.config import runtime, yaml_source
from appliance.config.changes import Changes, Report, compare
from appliance.config.problems import Problem, disagreements, refusal, translate
from appliance.config.redact import redact
from appliance.config.sections import (
    CodeConfig,
    CollectionConfig,
    Config,
    DeviceConfig,
    EgressConfig,
    FilesConfig,
    HardwareConfig,
    LimitsConfig,
    LoggingConfig,
    PricesConfig,
    RetentionConfig,
    ServerConfig,
    TelemetryConfig,
    TlsConfig,
    UiConfig,
)
from appliance.runners.cog.options import BuiltCogOptions, CogModel
from appliance.runners.model_config import (
    BuiltinSource,
    FolderSource,
    GitSource,
    HubSource,
    ModelConfig,
    PypiSource,
    Source,
)

__all__ = [
    "BuiltCogOptions",
    "BuiltinSource",
    "Changes",
    "CodeConfig",
    "CogModel",
    "CollectionConfig",
    "Config",
    "DeviceConfig",
    "EgressConfig",
    "FilesConfig",
    "FolderSource",
    "GitSource",
    "HardwareConfig",
    "HubSource",
    "LimitsConfig",
    "LoggingConfig",
    "ModelConfig",
    "PricesConfig",
    "PypiSource",
    "Report",
    "RetentionConfig",
    "ServerConfig",
    "Source",
    "TelemetryConfig",
    "TlsConfig",
    "UiConfig",
    "compare",
    "home",
    "json_schema",
    "load",
    "redact",
    "runtime",
]

#: Names the data folder, whatever the file says.
HOME_VARIABLE: Final = "APPLIANCE_HOME"
_DEFAULT_HOME: Final = "~/.local/share/appliance"


def load(path: Path) -> Config:
    """Read and validate a config file.

    Raises:
        ConfigError: every problem, with its line, model and key. Conflicts between values are reported only
            if each value is valid.
    """
    document = yaml_source.read(path)
    if not isinstance(document.data, dict):
        what = "is empty" if document.data is None else "should be a mapping of keys to values"
        raise refusal([Problem((), f"{what}; it needs at least the key models")], document, str(path))
    try:
        config = Config.model_validate(document.data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise refusal(translate(error), document, str(path)) from error
    problems = list(disagreements(config))
    if problems:
        raise refusal(problems, document, str(path))
    return config


def home(config: Config) -> Path:
    """The absolute data folder: ``APPLIANCE_HOME`` where that is set, else ``server.data`` or its default."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    return config.server.data or Path(_DEFAULT_HOME).expanduser()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the config file, for editors and for ``appliance schema``."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
