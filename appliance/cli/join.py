"""`appliance join`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from appliance.cli.serve import environment
from appliance.domain.errors import ConfigError, JoinRefused

if TYPE_CHECKING:
    from appliance.driver.node_http import Listen

DEFAULT_PORT: Final = 8770  # of the agents of head and nodes


def join(
    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST[:PORT]",
            help="The head; default port: 8770. If several machines can be the head: all of them, separated "
            "by commas.",
        ),
    ],
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="APPLIANCE_CLUSTER_TOKEN",
            help="Join token: the output of `appliance nodes token` on the head.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of this machine in the cluster. Default: its host name."),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Data folder. Default: APPLIANCE_HOME, else ~/.appliance-node."),
    ] = None,
    own_address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="IPv4 address at which the head reaches this machine. Default: the address from which this "
            "machine connects to the head.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port of this machine's agent.")
    ] = DEFAULT_PORT,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=4096, help="CPU threads that one model may use.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Main memory for models, such as 16GiB. Default: 80 % of it."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="A logical device, such as small=4GiB, instead of the machine's devices. Can be repeated.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Answer the HTTP API and the UI at this host and port, such as 0.0.0.0:8000, by forwarding "
            "requests to the head. Default: this machine does not answer HTTP.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="Certificate for HTTPS at --listen, a PEM file."),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Private key of --certificate.")] = None,
) -> None:
    """Make this machine a node of a cluster, until Ctrl-C or SIGTERM.

    The head is the machine of `appliance serve` whose models.yaml has the section `cluster`. It loads models
    on this machine. If the head becomes unreachable, this machine waits, and joins again. If several machines
    can be the head, it joins the one that is the head now.
    """
    from appliance.driver.cluster_head import own_name
    from appliance.driver.node_settings import NodeSettings
    from appliance.nodes.identity import TOKEN_VARIABLE, JoinToken

    if not token:
        raise JoinRefused(
            f"--token is missing: give the output of `appliance nodes token` on the head, or set "
            f"{TOKEN_VARIABLE}"
        )
    heads = tuple(_host_and_port(each.strip()) for each in address.split(","))
    if JoinToken.parse(token).fingerprint is not None and len(heads) > 1:
        raise JoinRefused(
            "a token of `appliance nodes token` is for one head only: choose a random text of at least 32 "
            f"characters, and give {TOKEN_VARIABLE} this value on all machines"
        )
    settings = NodeSettings(
        heads=heads,
        name=own_name(name),
        data=str(_home(home)),
        port=port,
        address=own_address,
        threads=threads,
        memory=None if memory is None else _bytes(memory, "--memory"),
        devices=dict(map(_device, device or ())),
        listen=_listen(listen, certificate, key),
    )
    command = [sys.executable, "-m", "appliance.driver.node", msgspec.json.encode(settings).decode()]
    sys.stdout.flush()
    # The token is in the environment, because all users can read the command line.
    os.execve(sys.executable, command, environment() | {TOKEN_VARIABLE: token})  # noqa: S606 - no shell is needed


def _home(given: Path | None) -> Path:
    named = os.environ.get("APPLIANCE_HOME")
    if given is None and named:
        given = Path(named)
    return (given or Path("~/.appliance-node")).expanduser().absolute()


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon and text:
        return text, DEFAULT_PORT
    if not host or not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise ConfigError(f"{text} does not name a head: write HOST or HOST:PORT")
    return host, int(port)


def _listen(text: str | None, certificate: Path | None, key: Path | None) -> Listen | None:
    """Return the host, port and certificate for HTTP on this machine; None without ``--listen``.

    Raises:
        ConfigError: an option is not valid or missing.
    """
    from appliance.driver.node_http import Listen

    if (certificate is None) != (key is None):
        raise ConfigError("give both --certificate and --key, or neither", key="--certificate")
    if text is None:
        if certificate is not None:
            raise ConfigError("--certificate needs --listen HOST:PORT, where it is used", key="--listen")
        return None
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise ConfigError(f"{text} is not valid: write HOST:PORT, such as 0.0.0.0:8000", key="--listen")
    host = host.removeprefix("[").removesuffix("]")
    if certificate is None or key is None:
        return Listen(host, int(port))
    listen = Listen(host, int(port), str(certificate.absolute()), str(key.absolute()))
    listen.tls()
    return listen


def _device(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"{text} is not a device: write NAME=SIZE, such as small=4GiB", key="--device")
    return name, _bytes(size, "--device")


def _bytes(text: str, option: str) -> int:
    from appliance.domain.values import bytes_of

    try:
        return int(bytes_of(text))
    except ValueError as error:
        raise ConfigError(str(error), key=option) from error
