"""`appliance erase`: erase what a running appliance stores of an account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote

import typer

from appliance.cli.adding import YesOption
from appliance.cli.options import JsonOption, print_json
from appliance.cli.remote import UrlOption, connected
from appliance.domain.units import readable_bytes

if TYPE_CHECKING:
    from appliance.protocols.account_types import AccountDataResponse

#: Field of the response -> what it counts.
_LINES: Final = {
    "predictions": "predictions",
    "trainings": "trainings",
    "versions": "versions that trainings created",
    "uploads": "uploads",
    "output_files": "output files",
    "conversations": "conversations",
    "deployments": "deployments",
    "builds": "records of builds",
    "examples": "examples of models",
    "tokens": "tokens",
    "sessions": "sessions",
    "users": "users",
    "webhook_keys": "webhook keys",
    "usage": "rows of usage (kept without the account)",
}


def erase(
    account: Annotated[str, typer.Argument(help="Username of the account.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be erased.")] = False,
    yes: YesOption = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase all data of an account: predictions, files, conversations, deployments, tokens, user.

    First its tokens are revoked, its sessions end, and its unfinished predictions are cancelled. The
    appliance must run, and the token must have the scope admin. If the command or the appliance is
    interrupted, the appliance continues. The audit log and earlier backups are not changed.
    """
    from appliance.protocols.account_types import AccountDataResponse

    client, path = connected(url), f"/admin/accounts/{quote(account, safe='')}/data"
    found = client.get_as(AccountDataResponse, path)
    if not as_json:
        _show(found)
    if not dry_run and (found.erasing or any(getattr(found, name) for name in _LINES)):
        if not yes:
            typer.confirm(f"Erase this data of the account {account}?", abort=True, err=True)
        found = client.send_as(AccountDataResponse, "DELETE", path)
        if not as_json:
            typer.echo(f"erased the data of the account {account}:")
            _show(found)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))


def _show(data: AccountDataResponse) -> None:
    counts = {text: count for name, text in _LINES.items() if (count := getattr(data, name))}
    if not counts:
        typer.echo(f"nothing is stored of the account {data.account}")
    for text, count in counts.items():
        typer.echo(f"{count:>8}  {text}")
    if data.bytes:
        typer.echo(f"{readable_bytes(data.bytes):>8}  in files")
    for name in data.kept_models:
        typer.echo(f"kept: the model {name} with its pushed versions: delete them through the API")
