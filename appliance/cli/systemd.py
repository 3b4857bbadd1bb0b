"""`appliance systemd`."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.options import (
    ConfigOption,
    HomeOption,
    HostOption,
    PortOption,
    config_path,
    home_folder,
    load_config,
    port,
)
from appliance.domain.errors import ApplianceError, ConfigError

if TYPE_CHECKING:
    from appliance.config import Config


def systemd(
    config: ConfigOption = None,
    home: HomeOption = None,
    user: Annotated[
        str | None, typer.Option(help="User who runs the appliance. Default: the user of this command.")
    ] = None,
    host: HostOption = None,
    port_given: PortOption = None,
    variables: Annotated[
        Path, typer.Option(help="File with environment variables for the appliance, one NAME=value a line.")
    ] = Path("/etc/appliance.env"),
) -> None:
    """Print a systemd unit that runs the appliance as a service, with this models.yaml and data folder.

    Remaining steps are printed to standard error.
    """
    from appliance.driver.systemd_unit import UnitSettings, unit

    checked = load_config(config)
    own = pwd.getpwuid(os.geteuid()).pw_name
    folder = _data_folder(home, checked, user, own)
    number = port(port_given, checked)
    command = [_program(), "serve", "--config", str(config_path(config)), "--home", str(folder)]
    command += ["--port", str(number)]
    if host is not None:
        command += ["--host", host]
    runs_as = user or own
    text = unit(
        UnitSettings(
            user=runs_as,
            command=command,
            home=folder,
            variables=variables.absolute(),
            port=number,
            drain_timeout=checked.server.drain_timeout,
        )
    )
    typer.echo(text, nl=False)
    if runs_as == "root":
        typer.echo("the unit runs the appliance as root: name another user with --user", err=True)
    if not folder.is_dir():
        typer.echo(f"create the data folder: sudo install -d -o {runs_as} -m 700 '{folder}'", err=True)


def _program() -> str:
    """Return the absolute path of the command ``appliance`` of this installation."""
    program = Path(sys.executable).with_name("appliance")
    if not program.exists():
        raise ApplianceError(
            f"{program} does not exist: install the appliance in the environment of {sys.executable}"
        )
    return str(program)


def _data_folder(given: Path | None, config: Config, user: str | None, own: str) -> Path:
    from appliance.config import HOME_VARIABLE

    default = given is None and not os.environ.get(HOME_VARIABLE) and config.server.data is None
    if default and user is not None and user != own:
        raise ConfigError(
            f"the default data folder belongs to {own}, not to {user}: name one with --home,"
            " such as /var/lib/appliance"
        )
    return home_folder(given, config)
