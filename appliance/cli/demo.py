"""`appliance demo`."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Annotated, Final

import typer

from appliance.cli.remote import UrlOption, appliance_url, connected
from appliance.domain.errors import ApplianceError, NotFound
from appliance.driver.proxies import NO_PROXIES

#: Set before Gradio is imported, so that Gradio calls no other server.
_OFFLINE: Final = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}


def demo(
    model: Annotated[str, typer.Argument(help="owner/name of the model, or an alias.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 means all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")] = 7860,
    url: UrlOption = None,
) -> None:
    """Serve a web page for one model until Ctrl-C. Other sites may show the page in a frame.

    Everyone who can open the page can run the model, with the token in the environment. The token needs only
    the scope `run`.
    """
    try:
        connected(url).get(f"/v1/models/{model}")  # report errors before the process starts
    except NotFound as error:
        raise ApplianceError(f"there is no model {model}: `appliance models` lists the models") from error
    api_url, certificate = appliance_url(url)
    command = [sys.executable, "-m", "appliance.ui.demo", model, "--host", host, "--port", str(port)]
    command += ["--api", api_url.rstrip("/").removesuffix("/v1")]
    trusted = certificate or os.environ.get("SSL_CERT_FILE")
    if trusted:
        command += ["--certificates", str(trusted)]
    # Gradio's default folder is shared with other users of the machine, who could have put files there.
    temporary = tempfile.mkdtemp(prefix="appliance-demo-")
    command += ["--temporary", temporary]
    environment = {**_OFFLINE, **os.environ, **NO_PROXIES, "TMPDIR": temporary}
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is needed
