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
    models: Annotated[list[str], typer.Argument(help="owner/name of each model, or an alias.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 means all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")] = 7860,
    runs_per_hour: Annotated[
        int | None, typer.Option(min=1, help="Most runs of one visitor (IP address) in an hour.")
    ] = None,
    max_upload: Annotated[
        str, typer.Option(help="Largest size of the files of one upload, such as 10MB.")
    ] = "100MB",
    max_input: Annotated[
        str, typer.Option(help="Largest size of all other inputs of one run together, such as 100KB.")
    ] = "1MiB",
    url: UrlOption = None,
) -> None:
    """Serve a web page for one or several models until Ctrl-C. Other sites may show it in a frame.

    Everyone who can open the page can run the models, with the token in the environment. The token needs only
    the scope `run`.
    """
    given = {"--max-upload": max_upload, "--max-input": max_input}
    sizes = {option: _size(option, size) for option, size in given.items()}
    for model in models:
        try:
            connected(url).get(f"/v1/models/{model}")  # report errors before the process starts
        except NotFound as error:
            raise ApplianceError(f"there is no model {model}: `appliance models` lists the models") from error
    api_url, certificate, client_certificate = appliance_url(url)
    command = [sys.executable, "-m", "appliance.ui.demo", *models, "--host", host, "--port", str(port)]
    command += ["--api", api_url.rstrip("/").removesuffix("/v1")]
    for option, size in sizes.items():
        command += [option, str(size)]
    if runs_per_hour is not None:
        command += ["--runs-per-hour", str(runs_per_hour)]
    trusted = certificate or os.environ.get("SSL_CERT_FILE")
    if trusted:
        command += ["--certificates", str(trusted)]
    if client_certificate is not None:
        command += ["--client-certificate", str(client_certificate)]
    # Gradio's default folder is shared with other users of the machine, who could have put files there.
    temporary = tempfile.mkdtemp(prefix="appliance-demo-")
    command += ["--temporary", temporary]
    environment = {**_OFFLINE, **os.environ, **NO_PROXIES, "TMPDIR": temporary}
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is needed


def _size(option: str, given: str) -> int:
    """Return a size in bytes.

    Raises:
        BadParameter: ``given`` is not a size.
    """
    from appliance.domain.values import bytes_of  # imports pydantic

    try:
        return bytes_of(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
