"""The command `appliance`, its subcommands, and its exit codes."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from appliance import __version__
from appliance.cli import (
    adding,
    audit,
    backup,
    bench,
    bundle,
    demo,
    encryption,
    erase,
    files,
    join,
    local,
    monitoring,
    nodes,
    push,
    remote,
    serve,
    systemd,
    tokens,
    transfer,
    usage,
    users,
    webhooks,
)
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.observability import logs

_EPILOGUE = (
    "Exit codes: 0 success, 1 failure with a message on stderr, 2 error in the command line or models.yaml, "
    "130 stopped by Ctrl-C. "
    "Environment: APPLIANCE_TOKEN or REPLICATE_API_TOKEN, the token; APPLIANCE_URL or REPLICATE_BASE_URL, "
    "the URL of a running appliance; APPLIANCE_CLIENT_CERTIFICATE, a PEM file with the client certificate "
    "and key that the appliance demands; APPLIANCE_HOME, the data folder; APPLIANCE_PORT, the port."
)

app = typer.Typer(
    name="appliance",
    help="Serve open-weights models on Replicate's HTTP API from one machine and one models.yaml.",
    epilog=_EPILOGUE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that every command accepts."""


for _command in (
    serve.serve,
    *(join.join, nodes.drain),
    *(local.check, local.pull, local.schema, local.certificate, local.doctor),
    *(remote.run, remote.models, remote.predictions, remote.example, remote.status, remote.reload),
    systemd.systemd,
    *(backup.backup, backup.restore),
    bundle.bundle,
    *(adding.search, adding.add, adding.remove, adding.update, adding.prune),
    demo.demo,
    usage.usage,
    bench.bench,
    erase.erase,
    push.push,
):
    app.command()(_command)
app.command()(transfer.export)
app.command("import")(transfer.import_)
for _name, _group in {
    "token": tokens.group,
    "nodes": nodes.group,
    "users": users.group,
    "webhook": webhooks.group,
    "file": files.group,
    "audit": audit.group,
    "monitoring": monitoring.group,
    "encryption": encryption.group,
}.items():
    app.add_typer(_group, name=_name)


def main() -> None:
    """Run the command line. Print errors of the appliance as one line on stderr, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        logs.configure(level="warning")
        app()
    except ConfigError as error:
        print(f"appliance: {error}", file=sys.stderr)
        sys.exit(2)
    except ApplianceError as error:
        # The detail is for clients of the API. Some errors have a longer text, which names files or servers.
        print(f"appliance: {str(error) or error.detail}", file=sys.stderr)
        sys.exit(1)
