"""`appliance serve`."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from appliance.cli.options import (
    ConfigOption,
    HomeOption,
    HostOption,
    PortOption,
    config_path,
    create_config,
    port_override,
)

#: Environment variables for Ray, vLLM and glibc. The user's own values have priority.
ENVIRONMENT: Final = {
    # Send no usage statistics.
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Ray listens on all interfaces, and its clients can run code, so they must present a secret.
    "RAY_AUTH_MODE": "token",
    # Calls to replicas use gRPC on the gateway's event loop, which takes half the time of actor calls.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Processes that the gateway forks execute another program at once. gRPC's fork handlers are for processes
    # that continue to use gRPC; they start threads that sometimes crash (grpc/doc/fork_support.md).
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
    # While a driver stops, a callback of Serve may call Ray after its end. By default, Ray then starts again,
    # with its dashboard and agents.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    # By default, the gateway and each replica report Serve's metrics to Ray ten times a second, although Ray
    # collects none here. With 0, they would report each measurement immediately.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    # Replicas request no GPU from Ray. They must see no GPU, so that they use no GPU memory.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Ray kills processes if more than this fraction of main memory is used. The appliance itself kills
    # worker processes that use too much, so Ray's limit is high.
    "RAY_memory_usage_threshold": "0.97",
    # Threads of the tokenizers would not survive the fork of a worker process. Worker processes set
    # HF_HUB_OFFLINE themselves, because the driver downloads weights.
    "TOKENIZERS_PARALLELISM": "false",
    # NVML and CUDA must number the GPUs in the same order.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Programs with many threads use much less memory with two malloc arenas than with glibc's eight per core.
    "MALLOC_ARENA_MAX": "2",
    # Tracebacks then mark no part of a line. The tables for that take about 8 MiB in each large process.
    "PYTHONNODEBUGRANGES": "1",
    # A process that changes its title must keep its environment: the appliance finds its processes by it.
    "SPT_NOENV": "1",
}
#: Threads of a model wait for each other many times per step. By default, a waiting thread keeps its core
#: busy for up to 20 milliseconds. If all models together have more threads than there are cores, it takes the
#: core from the thread that it waits for, and each step takes many times as long. With this number of turns,
#: it sleeps after about a quarter of a millisecond.
_SPIN_COUNT: Final = "5000"


def serve(
    config: ConfigOption = None,
    home: HomeOption = None,
    host: HostOption = None,
    port_given: PortOption = None,
    pull: Annotated[bool, typer.Option(help="Download missing weights before the start.")] = True,
    ui: Annotated[
        bool | None, typer.Option("--ui/--no-ui", help="Serve the web UI at /. Default: ui.enabled.")
    ] = None,
) -> None:
    """Start the appliance and run it until Ctrl-C or SIGTERM.

    Prints the URL, an example call and, at the first start, the token. If APPLIANCE_TOKEN is set, its value
    is a valid token with the scope admin. If the appliance was installed as a package and there is no
    ./models.yaml, writes one that lists small models and explains every setting.
    """
    created = create_config(Path()) if config is None else None
    if created is not None:
        typer.echo(f"wrote {created}: edit this file to choose models and settings")
    # Only the driver reads the config file and reports its errors. Reading it here too takes 0.7 s of CPU.
    command = [sys.executable, "-m", "appliance.driver.main", "--config", str(config_path(config))]
    if home is not None:
        command += ["--home", str(home.expanduser().absolute())]
    number = port_override(port_given)
    if number is not None:
        command += ["--port", str(number)]
    if host is not None:
        command += ["--host", host]
    if not pull:
        command.append("--no-pull")
    if ui is not None:
        command.append("--ui" if ui else "--no-ui")
    # Set Ray's secret here, because Ray would write a generated secret to a file that other users can read.
    variables = {"RAY_AUTH_TOKEN": secrets.token_hex(32), **environment()}
    sys.stdout.flush()
    os.execve(sys.executable, command, variables)  # noqa: S606 - no shell is needed


def environment() -> dict[str, str]:
    """Return the environment variables for a driver."""
    variables = {**ENVIRONMENT, **os.environ}
    if "OMP_WAIT_POLICY" not in variables:
        variables.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    # Without bytecode files each start compiles all imports, which takes longer than loading a model.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables
