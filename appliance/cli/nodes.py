"""`appliance nodes` and `appliance drain`: the machines of a cluster."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from appliance.cli.options import ConfigOption, HomeOption, JsonOption, home_folder, load_config, print_json
from appliance.cli.remote import UrlOption, connected
from appliance.domain.errors import ConfigError
from appliance.domain.units import readable_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from appliance.protocols.node_types import NodeResponse

group = typer.Typer(help="List the machines of a cluster, and print the token to join it.")


@group.callback(invoke_without_command=True)
def nodes(context: typer.Context, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the machines of the cluster, with their devices and the models there."""
    if context.invoked_subcommand is not None:
        return
    client = connected(url)
    if as_json:
        print_json(client.get("/admin/nodes"))
        return
    from rich.console import Console
    from rich.table import Table

    from appliance.protocols.node_types import NodesResponse

    found = client.get_as(NodesResponse, "/admin/nodes").nodes
    if not found:
        typer.echo("this appliance uses one machine: models.yaml has no section `cluster`")
        return
    machines = Table("node", "address", "state", "since", "version", box=None)
    devices = Table("device", "memory", "used", "models", box=None)
    for node in found:
        state = node.state if node.role == "node" else f"{node.state}, head"
        since = f"{node.since[:10]} {node.since[11:19]}"
        machines.add_row(node.name, node.address, state, since, node.version)
        for device in node.devices:
            used = "-" if device.used is None else readable_bytes(device.used)
            models = ", ".join(device.models) or "-"
            devices.add_row(device.name, readable_bytes(device.memory), used, models)
    console = Console()
    console.print(machines)
    if devices.rows:
        console.print()
        console.print(devices)
    for node in found:
        _print_reasons(console, node)


def _print_reasons(console: Console, node: NodeResponse) -> None:
    if node.reason is not None:
        console.print(f"{node.name} is lost: {node.reason}", style="red", markup=False, soft_wrap=True)
    if node.no_parts_reason is not None:
        text = f"{node.name} gets no parts of models on several machines: {node.no_parts_reason}"
        advice = "join with an address in this network (appliance join --address)"
        console.print(f"{text}: {advice}", markup=False, soft_wrap=True)
    for model, reason in node.staying.items():
        console.print(f"{model} is still on {node.name}: {reason}", markup=False, soft_wrap=True)


@group.command()
def token(
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Make a new token first. From then on, the head refuses the old token."),
    ] = False,
    config: ConfigOption = None,
    home: HomeOption = None,
) -> None:
    """Print the token with which other machines join the cluster. Keep it secret: it lets anyone join."""
    from appliance.nodes import identity
    from appliance.nodes.registry import cluster_folder

    folder = cluster_folder(home_folder(home, load_config(config)))
    if renew and os.environ.get(identity.TOKEN_VARIABLE):
        raise ConfigError(
            f"--renew has no lasting effect: the head takes its token from {identity.TOKEN_VARIABLE}. So "
            "change the variable on all machines, and restart the head",
            key=identity.TOKEN_VARIABLE,
        )
    if renew:
        identity.renew_secret(folder)
    typer.echo(str(identity.join_token(folder)))


def drain(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    undo: Annotated[bool, typer.Option("--undo", help="Load models on the node again.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load no more models on a node, and unload its models when their running predictions have finished."""
    client = connected(url)
    path = f"/admin/nodes/{quote(node, safe='')}/drain"
    done = client.send("DELETE" if undo else "POST", path)
    if as_json:
        print_json(done)
        return
    from appliance.protocols import api_client
    from appliance.protocols.node_types import NodeResponse

    found: NodeResponse = api_client.convert(done, NodeResponse)
    if undo:
        typer.echo(f"models can be loaded on node {node} again")
        return
    typer.echo(f"no more models are loaded on node {node}")
    for model, reason in found.staying.items():
        typer.echo(f"{model} is still there: {reason}")
