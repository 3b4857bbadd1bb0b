"""Read and validate the config file, models.yaml, into an immutable ``Config``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from appliance.config import includes, runtime, variables, yaml_source
from appliance.config.account_sections import OidcConfig, SignOnConfig
from appliance.config.changes import Changes, Report, compare
from appliance.config.cluster_section import ClusterConfig
from appliance.config.problems import Problem, config_error, conflicts, from_pydantic
from appliance.config.redact import redact, secrets
from appliance.config.secret_references import secret_variables
from appliance.config.sections import (
    AuditConfig,
    CollectionConfig,
    Config,
    FilesConfig,
    HardwareConfig,
    LimitsConfig,
    LoggingConfig,
    S3Config,
    TelemetryConfig,
    TlsConfig,
)
from appliance.domain.errors import ConfigError
from appliance.runners import child_environment
from appliance.runners.cog.options import BuiltCogOptions, CogModel, ImageCogOptions
from appliance.runners.model_config import (
    BuiltinSource,
    FolderSource,
    GitSource,
    HubSource,
    ImageSource,
    ModelConfig,
    PypiSource,
    Source,
)

__all__ = [
    "CONFIG_FILE",
    "AuditConfig",
    "BuiltCogOptions",
    "BuiltinSource",
    "Changes",
    "ClusterConfig",
    "CogModel",
    "CollectionConfig",
    "Config",
    "FilesConfig",
    "FolderSource",
    "GitSource",
    "HardwareConfig",
    "HubSource",
    "ImageCogOptions",
    "ImageSource",
    "LimitsConfig",
    "LoggingConfig",
    "ModelConfig",
    "OidcConfig",
    "PypiSource",
    "Report",
    "S3Config",
    "SignOnConfig",
    "Source",
    "TelemetryConfig",
    "TlsConfig",
    "compare",
    "home",
    "includes",
    "json_schema",
    "load",
    "redact",
    "referenced_variables",
    "runtime",
    "secrets",
    "validated",
]

#: Usual name of the config file.
CONFIG_FILE: Final = "models.yaml"
#: Environment variable with the data folder; it overrides `server.data`.
HOME_VARIABLE: Final = "APPLIANCE_HOME"
_DEFAULT_HOME: Final = "~/.local/share/appliance"


def load(path: Path) -> Config:
    """Read and validate a config file and its included files, ``models.d/*.yaml`` beside the file.

    Child processes that are started from now on do not inherit the variables to which secrets refer.

    Raises:
        ConfigError: lists all problems of the file with line, model and key. Conflicts between values are
            only listed if every single value is valid.
    """
    document = includes.read(path, os.environ)
    config = validated(document, path)
    child_environment.hide(secret_variables(document, os.environ))
    return config


def referenced_variables(path: Path, environment: Mapping[str, str]) -> set[str]:
    """Return the names of the variables in ``environment`` to which a config file refers.

    Raises:
        ConfigError: as ``includes.read``.
    """
    written = includes.read(path, environment).written
    return {name for text in written.values() for name in variables.names(text)} & environment.keys()


def validated(document: yaml_source.Document, path: Path) -> Config:
    """Validate the content of the config file ``path``. Relative paths start at its folder.

    Raises:
        ConfigError: as ``load``.
    """
    if not isinstance(document.data, dict):
        message = "is empty" if document.data is None else "should be a mapping of keys to values"
        raise config_error([Problem((), f"{message}; add at least the key models")], document, str(path))
    if document.problems:
        raise config_error([Problem(*each) for each in document.problems], document, str(path))
    try:
        config = Config.model_validate(document.data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise config_error(from_pydantic(error, document), document, str(path)) from error
    if problems := list(conflicts(config)):
        raise config_error(problems, document, str(path))
    return config


def home(config: Config) -> Path:
    """Return the absolute data folder: ``APPLIANCE_HOME``, else ``server.data``, else the default.

    Raises:
        ConfigError: the path begins with "~", and this user has no home folder.
    """
    variable = os.environ.get(HOME_VARIABLE)
    if not variable and config.server.data is not None:
        return config.server.data
    try:
        return Path(variable or _DEFAULT_HOME).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(
            f"user {os.getuid()} has no home folder for the data of the appliance: set {HOME_VARIABLE} or "
            "server.data to the absolute path of a folder that the user can write"
        ) from error


def json_schema() -> dict[str, Any]:
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
