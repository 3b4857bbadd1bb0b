"""`appliance users`: people who sign in to the UI, with or without a running appliance."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, JsonOption, print_json
from appliance.cli.tokens import with_store
from appliance.domain.errors import ApplianceError
from appliance.domain.token import Scope
from appliance.domain.user import LONGEST_PASSWORD, User, is_name, password_problem

if TYPE_CHECKING:
    from appliance.store import Store

group = typer.Typer(
    no_args_is_help=True, help="Add, list and remove people who sign in to the UI, and set their passwords."
)

NameArgument = Annotated[str, typer.Argument(help="Username, which is also the account of the person.")]


@group.command()
def add(
    name: NameArgument,
    scope: Annotated[
        Scope, typer.Option(help="Scope of the person's sessions; each scope includes those before it.")
    ] = Scope.RUN,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Add a person. The password is read from a prompt, or from standard input."""
    from appliance.gateway.sign_on.passwords import make_hash

    if not is_name(name):
        raise ApplianceError(
            f'{name!r} is no username: use lowercase letters, digits, and "-" or "_" between them'
        )
    user = User(name=name, scope=scope, created_at=time.time(), password=make_hash(_password(name)))
    event = command("user.add", name, {"scope": scope.value})
    if not with_store(config, home, lambda store: store.users.add(user, event)):
        raise ApplianceError(
            f"there is a user {name} already: `appliance users password {name}` sets a password"
        )
    typer.echo(f"{name} can sign in, with the scope {scope}", err=True)


@group.command(name="list")
def list_users(config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all people who have signed in at a provider, or have a password."""
    found = with_store(config, home, lambda store: store.users.all())
    if as_json:
        print_json([_shown(user) for user in found])
        return
    for user in found:
        seen = "never" if user.last_sign_in_at is None else _time(user.last_sign_in_at)
        scope = user.scope if user.method == "password" else "-"
        typer.echo(f"{user.name}  {user.method:8} {scope:6} last sign-in: {seen}")


@group.command()
def password(name: NameArgument, config: ConfigOption = None, home: HomeOption = None) -> None:
    """Set another password, and end the sessions of the person."""
    from appliance.gateway.sign_on.passwords import make_hash

    hash, event = make_hash(_password(name)), command("user.password", name)
    if not with_store(config, home, lambda store: store.users.set_password(name, hash, time.time(), event)):
        raise ApplianceError(
            f"there is no user {name} with a password: `appliance users list` shows the users"
        )
    typer.echo(f"replaced the password of {name}, who must sign in again", err=True)


@group.command()
def remove(name: NameArgument, config: ConfigOption = None, home: HomeOption = None) -> None:
    """Remove a person and end the person's sessions within a second. Tokens of the account stay valid."""

    async def removed(store: Store) -> list[str] | None:
        if not await store.users.remove(name, command("user.remove", name)):
            return None
        now = time.time()
        return [each.id for each in await store.list_tokens() if each.owner == name and each.valid(now)]

    tokens = with_store(config, home, removed)
    if tokens is None:
        raise ApplianceError(f"there is no user {name}: `appliance users list` shows the users")
    typer.echo(f"{name} is removed", err=True)
    for id in tokens:
        typer.echo(f"the token {id} of the account {name} is still valid: `appliance token revoke {id}`")


def _password(name: str) -> str:
    """Read a password from a prompt, or from the first line of standard input.

    It is no argument, because other users of the machine can read the arguments of processes.
    """
    if sys.stdin.isatty():
        found: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        found = sys.stdin.readline(LONGEST_PASSWORD + 2).removesuffix("\n").removesuffix("\r")
    if (problem := password_problem(found, name)) is not None:
        raise ApplianceError(f"{problem}.")
    return found


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _shown(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "signs_in_with": user.method,
        "scope": user.scope.value if user.method == "password" else None,
        "created_at": user.created_at,
        "last_sign_in_at": user.last_sign_in_at,
        "issuer": user.issuer,
        "groups_claim": user.groups_claim,
    }
