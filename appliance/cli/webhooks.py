"""`appliance webhook`: the key that webhooks are signed with, with or without a running appliance."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from appliance.cli.options import ConfigOption, HomeOption, finite
from appliance.cli.tokens import in_store
from appliance.errors import ApplianceError

group = typer.Typer(no_args_is_help=True, help="Show or replace the key that webhooks are signed with.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(group, name="webhook")


@group.command()
def secret(config: ConfigOption = None, home: HomeOption = None) -> None:
    """Print the key; receivers check signatures with it."""
    keys = in_store(config, home, lambda store: store.webhook_keys(time.time()))
    if not keys:
        raise ApplianceError("there is no key yet: `appliance serve` makes one at its first start")
    typer.echo(keys[0])


@group.command()
def rotate(
    keep: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Hours for which the old key signs too, for receivers to follow."
        ),
    ] = 24.0,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Make a new key and print it; a running appliance signs with it at once."""
    from appliance import webhooks

    key = webhooks.new_key()
    in_store(config, home, lambda store: store.add_webhook_key(key, time.time(), 3600 * keep))
    typer.echo(key)
