"""`appliance webhook`: show and replace webhook keys. Works with and without a running appliance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, finite, load_config
from appliance.cli.tokens import with_store

if TYPE_CHECKING:
    from appliance.store import Store

group = typer.Typer(no_args_is_help=True, help="Show or replace the key that signs an account's webhooks.")

OwnerOption = Annotated[
    str | None, typer.Option(help="Account whose webhooks the key signs. Default: server.account.")
]


@group.command()
def secret(owner: OwnerOption = None, config: ConfigOption = None, home: HomeOption = None) -> None:
    """Print the key that signs the account's webhooks. Create a key if there is none.

    Receivers of webhooks need the key to check signatures.
    """
    from appliance.gateway.webhooks import sender

    account = load_config(config).server.account

    async def newest(store: Store) -> str:
        await store.claim_webhook_keys(account)
        return (await sender.keys(store, owner or account, time.time()))[0]

    typer.echo(with_store(config, home, newest))


@group.command()
def rotate(
    keep: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Hours for which webhooks are signed with the old key too."
        ),
    ] = 24.0,
    owner: OwnerOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Replace the key that signs the account's webhooks, and print the new key.

    A running appliance uses the new key at once.
    """
    from appliance.gateway.webhooks import sender

    account = load_config(config).server.account
    key = sender.new_key()

    async def replace(store: Store) -> None:
        await store.claim_webhook_keys(account)
        await store.add_webhook_key(owner or account, key, time.time(), 3600 * keep)
        await store.audit.record(command("webhook_key.replace", owner or account))

    with_store(config, home, replace)
    typer.echo(key)
