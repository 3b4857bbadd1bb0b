"""`appliance file`: download links for uploads, with or without a running appliance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from appliance.cli.audit_events import command
from appliance.cli.options import ConfigOption, HomeOption, finite, load_config, port
from appliance.cli.tokens import with_store
from appliance.domain.errors import NotFound
from appliance.domain.local_url import local_url

if TYPE_CHECKING:
    from appliance.store import Store

group = typer.Typer(no_args_is_help=True, help="Create download links for uploads.")


@group.callback()
def _group() -> None:
    """Do nothing: without a callback, typer would merge a group with its only command."""


@group.command()
def link(
    id: Annotated[str, typer.Argument(help="Id of the upload, from GET /v1/files.")],
    hours: Annotated[
        float, typer.Option(min=0, callback=finite, help="Number of hours for which the URL is valid.")
    ] = 1.0,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Print a URL from which anyone can download an upload, without a token, for a limited time."""
    from appliance.gateway.files import file_store

    async def signed(store: Store) -> str:
        file = await store.files.get(id)
        if file is None or file.prediction is not None:
            raise NotFound(f"there is no upload with the id {id}: GET /v1/files lists the uploads")
        await store.audit.record(command("file.link", file.id, {"hours": hours}))
        secret = await file_store.signing_secret(store.files)
        expiry = int(time.time() + 3600 * hours)
        signature = file_store.signature(secret, file.owner, file.id, expiry)
        query = urlencode({"owner": file.owner, "expiry": expiry, "signature": signature})
        return f"/v1/files/{file.id}/download?{query}"

    loaded = load_config(config)
    tls = loaded.server.tls is not None
    base = loaded.server.public_url or local_url(loaded.server.host, port(None, loaded), tls=tls)
    typer.echo(base + with_store(config, home, signed))
