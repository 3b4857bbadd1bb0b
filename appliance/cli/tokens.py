"""`appliance token`: create, list and revoke API tokens, with or without a running appliance."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, JsonOption, home_folder, load_config, print_json
from appliance.domain import access, token
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
    description: Annotated[str, typer.Option(help="What the token is for.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="Time until the token expires, such as 12h or 720h. Default: never.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Network from which the token may be used, such as 10.0.0.0/8. Can be repeated."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model that the token may use, or a pattern such as owner/*. Can be repeated."),
    ] = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token, which is valid at once, and print its secret. The secret cannot be shown again."""
    owner = owner or load_config(config).server.account
    secret, now = token.new_token(), time.time()
    created = token.Token(
        id=token.new_id(),
        name=name,
        owner=owner,
        digest=token.digest(secret),
        created_at=now,
        scope=scope,
        description=description,
        expires_at=None if expires is None else now + _seconds(expires),
        networks=tuple(access.network(each) or each for each in network) if network else None,
        models=tuple(model) if model else None,
    )
    if problems := token.limits_problems(created):
        raise ApplianceError("; ".join(f"{each.field}: {each.description}" for each in problems))
    with_store(
        config,
        home,
        lambda store: store.add_token(created, command("token.create", created.id, token.recorded(created))),
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
    now = time.time()
    for known in found:
        state = known.state(now)
        created = _day(known.created_at)
        named = f"{known.owner}  {known.name}{_limits(known)}"
        typer.echo(f"{known.id}  {state:8} {known.scope:6} {created}  {named}")


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
    checked = load_config(config)
    return with_store_of(home_folder(home, checked), action, url=checked.store.url)


def with_store_of(folder: Path, action: Callable[[Store], Awaitable[T]], *, url: str | None = None) -> T:
    """Like ``with_store``, for a data folder and the URL of a PostgreSQL database that are known already."""
    from appliance.store import Store

    permissions.restrict()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ApplianceError(f"the data folder {folder} cannot be created: {error.strerror}") from error

    async def run() -> T:
        store = Store(folder / "appliance.db", url=url)
        await store.open()
        try:
            return await action(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _seconds(text: str) -> float:
    from pydantic import TypeAdapter, ValidationError

    from appliance.domain.values import Seconds

    try:
        return TypeAdapter[float](Seconds).validate_python(text)
    except ValidationError as error:
        raise ApplianceError(f"--expires {text}: {error.errors()[0]['msg']}") from error


def _limits(known: Token) -> str:
    """Return the limits and the last use of a token for a line of the list."""
    limits = [
        "" if known.expires_at is None else f"expires {_day(known.expires_at)}",
        "" if known.networks is None else f"from {', '.join(known.networks)}",
        "" if known.models is None else f"models {', '.join(known.models)}",
        ""
        if known.last_used_at is None
        else f"last used {_day(known.last_used_at)} from {known.last_used_from}",
        known.description,
    ]
    return "".join(f"; {each}" for each in limits if each)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _shown(known: Token) -> dict[str, object]:
    return {
        "id": known.id,
        "name": known.name,
        "owner": known.owner,
        "scope": known.scope.value,
        "created_at": known.created_at,
        "revoked_at": known.revoked_at,
        "description": known.description,
        "expires_at": known.expires_at,
        "networks": known.networks,
        "models": known.models,
        "last_used_at": known.last_used_at,
        "last_used_from": known.last_used_from,
    }
