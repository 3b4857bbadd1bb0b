"""models.yaml, the one config file: read, checked once, and frozen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from appliance.config import runtime, yaml_source
from appliance.config.changes import Changes, Report, compare
from appliance.config.models import (
    BuiltinSource,
    CogModel,
    DiffusersModel,
    EchoModel,
    EmbeddingsModel,
    FolderSource,
    GitSource,
    HubSource,
    ModelConfig,
    PiperModel,
    PypiSource,
    Source,
    TransformersModel,
    VllmModel,
    WhisperModel,
)
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
from appliance.runners.cog.options import BuiltCogOptions, CogOptions
from appliance.runners.diffusers.options import DescribedDiffusersOptions, DiffusersOptions
from appliance.runners.echo.options import EchoOptions
from appliance.runners.embeddings.options import EmbeddingsOptions
from appliance.runners.options import Options
from appliance.runners.piper.options import FoundPiperOptions, PiperOptions
from appliance.runners.transformers.options import TransformersOptions
from appliance.runners.vllm.options import VllmOptions
from appliance.runners.whisper.options import WhisperOptions

__all__ = [
    "BuiltCogOptions",
    "BuiltinSource",
    "Changes",
    "CodeConfig",
    "CogModel",
    "CogOptions",
    "CollectionConfig",
    "Config",
    "DescribedDiffusersOptions",
    "DeviceConfig",
    "DiffusersModel",
    "DiffusersOptions",
    "EchoModel",
    "EchoOptions",
    "EgressConfig",
    "EmbeddingsModel",
    "EmbeddingsOptions",
    "FilesConfig",
    "FolderSource",
    "FoundPiperOptions",
    "GitSource",
    "HardwareConfig",
    "HubSource",
    "LimitsConfig",
    "LoggingConfig",
    "ModelConfig",
    "Options",
    "PiperModel",
    "PiperOptions",
    "PricesConfig",
    "PypiSource",
    "Report",
    "RetentionConfig",
    "ServerConfig",
    "Source",
    "TelemetryConfig",
    "TlsConfig",
    "TransformersModel",
    "TransformersOptions",
    "UiConfig",
    "VllmModel",
    "VllmOptions",
    "WhisperModel",
    "WhisperOptions",
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
