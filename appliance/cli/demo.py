"""`appliance demo`."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Annotated, Final

import typer

from appliance.cli.remote import UrlOption, connected, reached
from appliance.domain.errors import ApplianceError, NotFound
from appliance.driver.proxies import NO_PROXIES

#: Before Gradio is imported: it calls nobody.
_QUIET: Final = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(demo)


def demo(
    model: Annotated[str, typer.Argument(help="owner/name of the model, or an alias.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")] = 7860,
    url: UrlOption = None,
) -> None:
    """Show one model on a bare page of its own, which may stand in a frame of other pages, until Ctrl-C.

    Whoever reaches it runs the model with the token in the environment; one with the scope `run` does.
    """
    try:
        connected(url).get(f"/v1/models/{model}")  # what is wrong is said before anything starts
    except NotFound as error:
        raise ApplianceError(f"there is no model {model}; `appliance models` lists them") from error
    address, certificate = reached(url)
    command = [sys.executable, "-m", "appliance.ui.demo", model, "--host", host, "--port", str(port)]
    command += ["--api", address.rstrip("/").removesuffix("/v1")]
    trusted = certificate or os.environ.get("SSL_CERT_FILE")
    if trusted:
        command += ["--certificates", str(trusted)]
    temporary = tempfile.mkdtemp(prefix="appliance-demo-")  # others could plant Gradio's default
    command += ["--temporary", temporary]
    environment = {**_QUIET, **os.environ, **NO_PROXIES, "TMPDIR": temporary}
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is needed
