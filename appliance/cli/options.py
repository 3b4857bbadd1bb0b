"""Options that several commands share."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from appliance.domain.errors import ConfigError

if TYPE_CHECKING:
    from appliance.config import Config

_PACKAGE: Final = Path(__file__).parents[1]
#: The models.yaml of a checkout, next to the package.
_CHECKOUT: Final = _PACKAGE.parent / "models.yaml"
#: The models.yaml of a wheel.
_SHIPPED: Final = _PACKAGE / "assets" / "models.yaml"

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Config file. Default: ./models.yaml, else the shipped models.yaml."),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Data folder. Default: APPLIANCE_HOME, else server.data in the config file."),
]
HostOption = Annotated[
    str | None,
    typer.Option("--host", help="Address to listen on. Default: server.host in the config file."),
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", "-p", min=1, max=65535, help="Port. Default: APPLIANCE_PORT, else server.port."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def finite(value: float) -> float:
    """Check an option's value: a typer callback.

    Raises:
        typer.BadParameter: ``value`` is infinite or NaN. NaN would pass typer's checks of minimum and
            maximum.
    """
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def config_path(given: Path | None) -> Path:
    """Return the absolute path of the config file.

    Raises:
        ConfigError: no file is given, and neither ./models.yaml nor the shipped file exists.
    """
    if given is not None:
        return given.absolute()  # errors are reported when the file is read
    for candidate in (Path("models.yaml"), _CHECKOUT, _SHIPPED):
        if candidate.exists():
            return candidate.absolute()
    raise ConfigError("./models.yaml does not exist: name a config file with --config", file=str(Path()))


def create_config(folder: Path) -> Path | None:
    """Write the shipped models.yaml, with its comments, to ``folder``. Return the path of the new file.

    Return None, and write nothing, if the folder has a models.yaml or if the package is used from a checkout.

    Raises:
        ConfigError: the file cannot be written.
    """
    target = folder.absolute() / "models.yaml"
    if target.exists() or _CHECKOUT.exists() or not _SHIPPED.exists():
        return None
    text = _SHIPPED.read_bytes()
    try:
        with target.open("xb") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"models.yaml cannot be created: {error.strerror}: start the appliance in a folder "
            "that you can write, or name a config file with --config",
            file=str(target),
        ) from error
    return target


def load_config(given: Path | None) -> Config:
    from appliance import config

    return config.load(config_path(given))


def home_folder(given: Path | None, config: Config) -> Path:
    from appliance import config as configuration

    return given.expanduser().absolute() if given is not None else configuration.home(config)


def port(given: int | None, config: Config) -> int:
    """Return the port from ``given``, else from APPLIANCE_PORT, else from the config.

    Raises:
        ConfigError: APPLIANCE_PORT is not a port number.
    """
    return port_override(given) or config.server.port


def port_override(given: int | None) -> int | None:
    """Return the port from ``given``, else from APPLIANCE_PORT; None if neither is set.

    Raises:
        ConfigError: APPLIANCE_PORT is not a port number.
    """
    text = os.environ.get("APPLIANCE_PORT")
    if given is not None or not text:
        return given
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 65535:
        raise ConfigError(f"APPLIANCE_PORT is {text!r}: set it to a port, 1 to 65535")
    return int(text)
