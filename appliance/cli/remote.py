"""Commands that call a running appliance: run, models, predictions, example, status, reload."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from urllib.parse import urlencode

import typer

from appliance.cli.options import JsonOption, home_folder, load_config, port, print_json
from appliance.domain.errors import ApplianceError, NotFound
from appliance.domain.local_url import local_url
from appliance.domain.units import readable_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from appliance.cli.client import Client
    from appliance.config import Config
    from appliance.protocols.admin_types import ApplianceStatusResponse, ModelMemory

#: Environment variable with the path of a PEM file that has a client certificate and its key.
CLIENT_CERTIFICATE: Final = "APPLIANCE_CLIENT_CERTIFICATE"

UrlOption = Annotated[
    str | None,
    typer.Option(help="URL of the appliance. Default: APPLIANCE_URL, REPLICATE_BASE_URL, else models.yaml."),
]


def connected(url: str | None, config: Config | None = None) -> Client:
    from appliance.cli.client import connect

    return connect(*appliance_url(url, config))


class Endpoint(NamedTuple):
    """The URL of an appliance, and the certificate files for requests to it."""

    url: str
    certificate: Path | None  # the certificate in models.yaml, to be trusted
    client_certificate: Path | None  # file with a certificate and its key


def appliance_url(url: str | None, config: Config | None = None) -> Endpoint:
    """Return the appliance's URL, and the certificates for its clients.

    ``config`` is the content of models.yaml if it has been read already.
    """
    given = os.environ.get(CLIENT_CERTIFICATE)
    presented = None if not given else Path(given)
    known = url or os.environ.get("APPLIANCE_URL") or os.environ.get("REPLICATE_BASE_URL")
    if known:
        return Endpoint(known, None, presented)
    config = config or load_config(None)
    tls = config.server.tls
    url = local_url(config.server.host, port(None, config), tls=tls is not None)
    if tls is None:
        return Endpoint(url, None, None)
    from appliance.gateway.settings import client_files

    if presented is None and tls.client_ca is not None:
        presented = client_files(home_folder(None, config) / "run").own
    return Endpoint(url, tls.certificate, presented)


def run(
    model: Annotated[str, typer.Argument(help="owner/name, owner/name:version, a version id or an alias.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="key=value, or key=@file for a file's content. May be repeated."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Save output files to this folder, and print their paths instead of the output."),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model and print its output as it is produced. Ctrl-C cancels the prediction.

    Example: appliance run meta/meta-llama-3-8b-instruct -i prompt="Hello!" -i max_tokens=50
    """
    from appliance.cli.client import parse_input

    client = connected(url)
    properties = input_properties(client, model)
    body = {"version": model, "input": dict(parse_input(given, properties) for given in inputs or [])}
    created = client.post("/v1/predictions", body)
    try:
        for event in client.stream(created["urls"]["stream"]):
            if event.name == "output" and not as_json and save is None:
                sys.stdout.write(event.data)
                sys.stdout.flush()
    except KeyboardInterrupt:
        client.post(f"/v1/predictions/{created['id']}/cancel")
        typer.echo(f"\nprediction {created['id']} is canceled", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    final = client.get(f"/v1/predictions/{created['id']}")
    if as_json or save is None:
        typer.echo(json.dumps(final, indent=2) if as_json else "")
    if save is not None:
        for path in client.save(final["output"], save):
            typer.echo(path, err=as_json)
    if final["status"] != "succeeded":
        reason = f": {final['error']}" if final.get("error") else ""
        raise ApplianceError(f"prediction {final['id']} {final['status']}{reason}")


def input_properties(client: Client, model: str) -> dict[str, Any]:
    """Return the declared inputs of a model by name; empty for a version id, whose model is unknown."""
    from appliance.cli.client import declared_inputs

    if "/" not in model:
        return {}
    name, _, id = model.partition(":")
    path = f"/v1/models/{name}"
    try:
        version = client.get(f"{path}/versions/{id}") if id else client.get(path)["latest_version"]
    except NotFound as error:
        raise ApplianceError(f"there is no model {model}: `appliance models` lists the models") from error
    return declared_inputs(version["openapi_schema"])


def models(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the models with their number of runs and description."""
    from appliance.protocols import api_client
    from appliance.protocols.response_types import ModelResponse

    found = connected(url).all_pages("/v1/models")
    if as_json:
        print_json(found)
        return
    for model in api_client.convert(found, list[ModelResponse]):
        typer.echo(f"{model.owner}/{model.name}  {model.run_count} runs  {model.description or ''}")


def predictions(
    id: Annotated[str | None, typer.Argument(help="Id of the prediction. Default: list predictions.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the prediction.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Number of predictions to list.")] = 20,
    model: Annotated[str | None, typer.Option(help="Only predictions of this model: owner/name.")] = None,
    status: Annotated[str | None, typer.Option(help="Only predictions with this status.")] = None,
    slower_than: Annotated[
        str | None,
        typer.Option(help="Only predictions that took longer than this, from creation to end: 2s, 10m."),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List predictions. With an ID, show or cancel that prediction.

    With --model, --status or --slower-than, an administrator sees the predictions of all accounts.
    """
    client = connected(url)
    if id is not None:
        path = f"/v1/predictions/{id}"
        print_json(client.post(f"{path}/cancel") if cancel else client.get(path))
        return
    if cancel:
        raise ApplianceError("name the prediction to cancel: appliance predictions ID --cancel")
    given = {"model": model, "status": status, "slower_than": slower_than}
    filters = urlencode({name: value for name, value in given.items() if value is not None})
    path = f"/admin/predictions?limit={limit}&{filters}" if filters else "/v1/predictions"
    found = client.get(path)["results"][:limit]
    if as_json:
        print_json(found)
        return
    from appliance.protocols import api_client
    from appliance.protocols.admin_types import AdminPredictionResponse
    from appliance.protocols.response_types import PredictionResponse

    type: Any = list[AdminPredictionResponse] if filters else list[PredictionResponse]
    for record in api_client.convert(found, type):
        seconds = record.metrics.get("total_time") if isinstance(record.metrics, dict) else None
        duration = f"{seconds:.2f} s" if seconds is not None else ""
        typer.echo(f"{record.id}  {record.status:10} {record.created_at[:19]}  {duration:>9}  {record.model}")


def example(
    model: Annotated[str, typer.Argument(help="owner/name of the model.")],
    id: Annotated[str, typer.Argument(help="Id of a prediction of the model that succeeded.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the example.")] = False,
    url: UrlOption = None,
) -> None:
    """Show a prediction as an example on the model's page.

    Everyone who may see the model can see the example. Its data is not removed by `retention`.
    """
    connected(url).send("DELETE" if remove else "PUT", f"/admin/models/{model}/examples/{id}")


def reload(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Make the running appliance read models.yaml again, and print the changes.

    Unchanged models stay loaded, and running predictions finish. The command waits until missing weights are
    downloaded.
    """
    from appliance.config import Report
    from appliance.protocols import api_client

    done = connected(url).post("/admin/reload")
    typer.echo(json.dumps(done, indent=2) if as_json else str(api_client.convert(done, Report)))


def status(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show the devices and models of a running appliance, and how many predictions run and wait."""
    client = connected(url)
    if as_json:
        print_json(client.get("/admin/status"))
        return
    from rich.console import Console
    from rich.table import Table

    from appliance.protocols.admin_types import ApplianceStatusResponse

    found = client.get_as(ApplianceStatusResponse, "/admin/status")

    known = Table("model", "state", "running", "waiting", "on", "memory", box=None)
    for model in found.models:
        where = ", ".join(model.devices) or "-"
        counts = str(model.running), str(model.queued)
        state = model.state if model.copying_to is None else f"copying weights to {model.copying_to}"
        known.add_row(model.name, state, *counts, where, _memory(model.memory))
    console = Console()
    console.print(
        f"version {found.version}, up {found.uptime:.0f} s" + (", draining" if found.draining else "")
    )
    _show_devices(console, found)
    console.print()
    console.print(known)
    for model in found.models:
        if model.fits_nowhere is not None:
            message = f"{model.name} fits on no node: {model.fits_nowhere}"
            console.print(message, style="red", markup=False, soft_wrap=True)
    for left_out in found.not_served:
        message = f"{left_out.name} is not served: {left_out.problem}"
        console.print(message, style="red", markup=False, soft_wrap=True)
    if found.decisions:
        console.print()
        for decision in reversed(found.decisions):
            console.print(f"{decision.at[11:19]}  {decision.text}", highlight=False)


def _show_devices(console: Console, found: ApplianceStatusResponse) -> None:
    from rich.table import Table

    if not found.runs_models:
        joined = "" if found.devices else ", and no node is ready"
        console.print(f"this machine runs no models: the nodes of its cluster do{joined}", soft_wrap=True)
    if not found.devices:
        return
    devices = Table("device", "memory", "free", "reserved by", box=None)
    for device in found.devices:
        held = ", ".join(f"{model} {readable_bytes(count)}" for model, count in device.reserved.items())
        if device.foreign:
            held += f"{', ' if held else ''}other programs {readable_bytes(device.foreign)}"
        devices.add_row(device.name, readable_bytes(device.memory), readable_bytes(device.free), held or "-")
    console.print(devices)


def _memory(known: ModelMemory) -> str:
    needs = f"{known.share:g} of a device" if known.bytes is None else readable_bytes(known.bytes)
    parts = [f"{needs} {known.origin}"]
    if known.peak is not None:
        parts.append(
            f"used {readable_bytes(known.peak)}" + (", more than its limit" if known.exceeds else "")
        )
    if known.out_of_memory:
        parts.append(f"ran out of memory {known.out_of_memory} times")
    if known.problem is not None:
        parts.append(known.problem)
    return "; ".join(parts)
