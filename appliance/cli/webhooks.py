"""`appliance webhook`: show and replace webhook keys, with or without a running appliance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.options import ConfigOption, HomeOption, finite, load_config
from appliance.cli.tokens import in_store

if TYPE_CHECKING:
    from appliance.store import Store

group = typer.Typer(no_args_is_help=True, help="Show or replace the key that signs an account's webhooks.")

OwnerOption = Annotated[
    str | None, typer.Option(help="Account whose webhook key to use. Default: server.account.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(group, name="webhook")


@group.command()
def secret(owner: OwnerOption = None, config: ConfigOption = None, home: HomeOption = None) -> None:
    """Print the account's key, with which its receivers check signatures. Create one if it has none."""
    from appliance.gateway.webhooks import sender

    account = load_config(config).server.account

    async def newest(store: Store) -> str:
        await store.claim_webhook_keys(account)
        return (await sender.keys(store, owner or account, time.time()))[0]

    typer.echo(in_store(config, home, newest))


@group.command()
def rotate(
    keep: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Hours for which the old key signs too, so that receivers can switch"
        ),
    ] = 24.0,
    owner: OwnerOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Make a new key for the account and print it. A running appliance uses it at once."""
    from appliance.gateway.webhooks import sender

    account = load_config(config).server.account
    key = sender.new_key()

    async def replace(store: Store) -> None:
        await store.claim_webhook_keys(account)
        await store.add_webhook_key(owner or account, key, time.time(), 3600 * keep)

    in_store(config, home, replace)
    typer.echo(key)
