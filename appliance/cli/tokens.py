"""`appliance token`: create, list and revoke API tokens, with or without a running appliance."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from appliance.cli.acts import command
from appliance.cli.options import ConfigOption, HomeOption, JsonOption, home_folder, load_config, print_json
from appliance.domain import token
from appliance.domain.errors import ApplianceError
from appliance.driver import permissions

if TYPE_CHECKING:
    from appliance.domain.token import Token
    from appliance.store import Store

T = TypeVar("T")

group = typer.Typer(no_args_is_help=True, help="Create, list and revoke API tokens.")


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the token, such as its purpose.")] = "token",
    scope: Annotated[
        token.Scope, typer.Option(help="Scope of the token; each scope includes those before it.")
    ] = token.Scope.RUN,
    owner: Annotated[
        str | None, typer.Option(help="Account that the token belongs to. Default: server.account.")
    ] = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token, which is valid at once, and print its secret. The secret cannot be shown again."""
    owner = owner or load_config(config).server.account
    secret = token.new_token()
    created = token.Token(
        id=token.new_id(),
        name=name,
        owner=owner,
        digest=token.digest(secret),
        created_at=time.time(),
        scope=scope,
    )
    with_store(
        config,
        home,
        lambda store: store.add_token(
            created,
            command("token.create", created.id, {"name": name, "owner": owner, "scope": scope.value}),
        ),
    )
    if as_json:
        typer.echo(json.dumps({**_shown(created), "token": secret}))
    else:
        typer.echo(secret)
        typer.echo(
            f"token {created.id} ({name}): account {owner}, scope {scope}; its secret is not shown again",
            err=True,
        )


@group.command(name="list")
def list_tokens(config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all tokens, without their secrets."""
    found = with_store(config, home, lambda store: store.list_tokens())
    if as_json:
        print_json([_shown(known) for known in found])
        return
    for known in found:
        state = "revoked" if known.revoked_at is not None else "valid"
        created = datetime.fromtimestamp(known.created_at, UTC).strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{known.id}  {state:8} {known.scope:6} {created}  {known.owner}  {known.name}")


@group.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The token's id, from `appliance token list`.")],
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Revoke a token. A running appliance refuses the token within a second."""
    revoked = with_store(config, home, lambda store: store.revoke_token(id, command("token.revoke", id)))
    if revoked is None:
        raise ApplianceError(f"there is no token with the id {id}: `appliance token list` shows the ids")
    typer.echo(f"token {id} ({revoked.name}) is revoked")


def with_store(config: ConfigOption, home: HomeOption, action: Callable[[Store], Awaitable[T]]) -> T:
    """Run ``action`` on the database of the data folder. A running appliance may use the database too."""
    from appliance.store import Store

    folder = home_folder(home, load_config(config))
    permissions.restrict()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ApplianceError(f"the data folder {folder} cannot be created: {error.strerror}") from error

    async def run() -> T:
        store = Store(folder / "appliance.db")
        await store.open()
        try:
            return await action(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _shown(known: Token) -> dict[str, object]:
    return {
        "id": known.id,
        "name": known.name,
        "owner": known.owner,
        "scope": known.scope.value,
        "created_at": known.created_at,
        "revoked_at": known.revoked_at,
    }
