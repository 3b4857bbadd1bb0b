"""`appliance serve`."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from appliance.cli.options import ConfigOption, HomeOption, config_path, home_folder, load_config, port

#: What must be in the environment before Ray, vLLM and glibc are loaded; a value of the user's own wins.
ENVIRONMENT: Final = {
    # Nothing is reported to anyone.
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Ray's ports are open on every interface, and who may speak to them may run code: they ask for a secret.
    "RAY_AUTH_MODE": "token",
    # Calls to replicas go over gRPC on the gateway's own loop, in half the time of actor calls elsewhere.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # What the gateway forks becomes another program at once. gRPC's handlers of forks, meant for those that
    # go on with gRPC, start threads in them that crash now and then (grpc/doc/fork_support.md).
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    # Replicas ask Ray for no GPU and must see none, or one could take memory that the ledger gives away.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Ray kills processes when memory is short; engine hosts are the appliance's to kill.
    "RAY_memory_usage_threshold": "0.97",
    # The tokenizers' threads would not survive the fork of an engine host. HF_HUB_OFFLINE is for the hosts to
    # set: the driver still has weights to fetch.
    "TOKENIZERS_PARALLELISM": "false",
    # NVML and CUDA then count GPUs in the same order.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Threaded programs hold much less memory with a few arenas than with eight a core.
    "MALLOC_ARENA_MAX": "2",
    # Processes that rename themselves keep their environment, which tells whose they are.
    "SPT_NOENV": "1",
}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(serve)


def serve(
    config: ConfigOption = None,
    home: HomeOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: server.host, which is loopback.")
    ] = None,
    port_given: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=1, max=65535, help="Port. Default: APPLIANCE_PORT, else server.port."
        ),
    ] = None,
    pull: Annotated[bool, typer.Option(help="Fetch weights that are missing first.")] = True,
    ui: Annotated[
        bool | None, typer.Option("--ui/--no-ui", help="Have pages for people at /. Default: ui.enabled.")
    ] = None,
) -> None:
    """Start the appliance and run it until Ctrl-C or SIGTERM.

    Prints the address, the token (at the first start) and a snippet to call it with. With APPLIANCE_TOKEN in
    the environment that is a valid token.
    """
    checked = load_config(config)  # what is wrong with it is said before anything starts
    path: Path = config_path(config)
    command = [sys.executable, "-m", "appliance.driver.main", "--config", str(path)]
    command += ["--home", str(home_folder(home, checked)), "--port", str(port(port_given, checked))]
    if host is not None:
        command += ["--host", host]
    if not pull:
        command.append("--no-pull")
    if ui is not None:
        command.append("--ui" if ui else "--no-ui")
    # A secret of this run: the one that Ray would make by itself lies in a file that others may read.
    environment = {**ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32), **os.environ}
    # Without bytecode every start compiles its imports anew, which takes longer than loading a model.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted
