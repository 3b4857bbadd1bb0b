"""The driver: checks the config, and starts and stops all processes of the appliance.

``appliance serve`` prepares the environment and then executes ``python -m appliance.driver.main``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from appliance import config as configuration
from appliance import machine, weights
from appliance.config import Config, runtime
from appliance.domain.errors import ApplianceError, ConfigError, LeaseLost, RayLost, WeightsError
from appliance.domain.local_url import local_url
from appliance.driver import (
    client_certificates,
    cluster_head,
    home_lock,
    own_process,
    permissions,
    proxies,
    self_url,
    service_manager,
    standby,
    temporary_folder,
    zygote,
)
from appliance.driver.first_token import first_token
from appliance.driver.own_process import DriverState
from appliance.driver.supervisor import Supervisor
from appliance.gateway.listener import ListeningSocket
from appliance.gateway.settings import GatewaySettings, client_files
from appliance.machine.hardware import runs_nowhere
from appliance.machine.processes import kill_marked
from appliance.observability import logs
from appliance.runners import KINDS
from appliance.runners.adapters import with_downloads
from appliance.runners.child_environment import take_secrets
from appliance.worker.cleanup import kill_leftover_workers

if TYPE_CHECKING:
    from appliance.cluster.ray_node import RayNode

_log = logging.getLogger(__name__)

#: Result of ``run`` if Ray has ended, or another machine is the head: the driver has to restart itself.
_RESTART: Final = -1
#: Environment variable that tells a new driver that the one it replaces has served, or was the standby.
_WAS_RUNNING: Final = "APPLIANCE_WAS_RUNNING"


def ui_supervisor(settings: GatewaySettings) -> Supervisor:
    command = [sys.executable, "-m", "appliance.ui", "--socket", str(settings.ui_socket)]
    command += ["--config", str(settings.config_file), "--home", str(settings.home)]
    command += ["--api", os.environ[self_url.URL_VARIABLE]]
    if self_url.CERTIFICATES in os.environ:
        command += ["--certificates", os.environ[self_url.CERTIFICATES]]
    if _own_certificate(settings) is not None:
        command += ["--client-certificate", str(_own_certificate(settings))]

    def secrets() -> dict[str, str]:
        """Return the secrets to which models.yaml refers, because the UI reads models.yaml too."""
        variables = {**os.environ, **settings.secrets}
        try:
            names = configuration.referenced_variables(settings.config_file, variables)
        except ConfigError:
            return {}  # the UI reads the same file, and its log says what is wrong
        return {name: settings.secrets[name] for name in sorted(names & settings.secrets.keys())}

    return Supervisor("UI", lambda: command, settings.home / "logs" / "ui.log", secrets=secrets)


def _own_certificate(settings: GatewaySettings) -> Path | None:
    """Return the file with the appliance's own client certificate; None if clients need no certificate."""
    tls = settings.config.server.tls
    return None if tls is None or tls.client_ca is None else client_files(settings.run_dir).own


def prepare_home(settings: GatewaySettings) -> None:
    """Create the data folder, its folders and the log file.

    Raises:
        ApplianceError: a file or folder cannot be created or written.
    """
    home = settings.home
    try:
        for folder in (home, settings.run_dir, home / "logs", home / "weights", home / "cache"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.log_file.touch(mode=0o600)
        home_lock.path(home).touch(mode=0o600)
    except OSError as error:
        raise ApplianceError(
            f"the data folder {home} cannot be used: {error.filename}: {error.strerror}: change the owner to "
            "the user who runs the appliance, or choose another folder with --home or APPLIANCE_HOME"
        ) from error


def check_tls(config: Config) -> None:
    tls = config.server.tls
    if tls is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{tls.certificate} and {tls.key} cannot be used: {error}: both must be PEM, of one key pair",
            key="server.tls",
        ) from error
    client_certificates.check(tls)


def pull_missing(settings: GatewaySettings, console: Console) -> None:
    """Download missing weights, and build projects and environments, of all models that a machine can run.

    A failure for one model is printed, and the other models are served.
    """
    home, hardware = settings.home, settings.hardware
    models = [model for model in settings.config.models if runs_nowhere(model, hardware) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for model in with_downloads(models):
            try:
                if not weights.is_prepared(home, model):
                    weights.prepare(home, model, progress)
            except WeightsError as error:
                console.print(f"[yellow]model {model.name} is not served yet: {error.detail}[/]")


def url(settings: GatewaySettings) -> str:
    """Return the URL for users: ``server.public_url``, else the URL on this machine."""
    tls = settings.config.server.tls is not None
    return settings.config.server.public_url or local_url(settings.host, settings.port, tls=tls)


def banner(settings: GatewaySettings, secret: str | None) -> str:
    """Return the text for a user's first call: URL, token, models and an example."""
    address = url(settings)
    if secret is not None:
        shown = f"{secret}   (shown only now; `appliance token create` creates more tokens)"
    elif logs.TOKEN_VARIABLE in settings.secrets:
        shown = f"the one in {logs.TOKEN_VARIABLE}"
    else:
        shown = "the one shown at the first start; `appliance token create` creates another"
    models = settings.config.models
    example = next((model for model in models if KINDS[model.kind].example_input), models[0])
    name = next((alias for alias in example.aliases if "/" in alias), example.name)
    input = KINDS[example.kind].example_input or "prompt"
    return "\n".join(
        (
            f"appliance is ready at {address}",
            f"token:  {shown}",
            f"models: {', '.join(model.name for model in models)}",
            *cluster_head.how_to_join(settings),
            "",
            f"  export REPLICATE_BASE_URL={address} REPLICATE_API_TOKEN={secret or '<token>'}",
            "  python -c 'import replicate",
            f'print(*replicate.run("{name}", input={{"{input}": "Hello!"}}), sep="")\'',
        )
    )


async def announce(settings: GatewaySettings, secret: str | None, console: Console) -> None:
    """Print the text for a user's first call, once ``/`` answers if the appliance has a UI."""
    while settings.ui and not await _answers(settings, "/"):
        await asyncio.sleep(0.1)
    console.print(banner(settings, secret), highlight=False, markup=False, soft_wrap=True)


async def follow_log(path: Path, out: IO[str]) -> None:
    """Copy to ``out`` all text that is appended to a file from now on. Runs until it is cancelled."""
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        while True:
            text = file.read()
            with contextlib.suppress(OSError):  # the output may be a file on a full disk
                out.write(text)
                out.flush()
            await asyncio.sleep(0.2)


async def run(
    settings: GatewaySettings,
    temp: Path,
    listeners: Sequence[ListeningSocket],
    console: Console,
    state: DriverState,
) -> int:
    """Start the appliance and run it until a signal comes. Returns the exit code, or ``_RESTART``.

    ``temp`` is the folder for temporary files. If another machine is the head of the cluster, first wait
    until this machine is the head.

    Raises:
        ApplianceError: the appliance could not start.
        RayLost: Ray ended before the gateway answered, or while the appliance stopped.
        LeaseLost: another machine became the head before Ray started, or while the appliance stopped.
    """
    own_process.stop_on_signals(state.stop)
    started = zygote.supervisors_of_head(settings)
    for child in started:
        await child.start()  # before Ray is imported, because the first model needs the zygote's imports
    node = _ray_node(settings, temp)
    lease = standby.lease_of(settings)
    if lease is None:
        return await _run(settings, node, started, None, listeners, state, console)
    warning = standby.files_warning(settings.config, settings.home)
    if warning is not None:
        console.print(f"[yellow]{warning}[/]", soft_wrap=True)

    from appliance.driver import standby_http

    async with standby_http.forwarding(settings, listeners[0], console) as http:

        async def on_waiting(head: str | None) -> None:
            state.past_first_start = True
            # Input files of predictions that this machine ran as the head. Another head runs them now.
            await asyncio.to_thread(shutil.rmtree, settings.run_dir / "inputs", ignore_errors=True)
            await http.forward_to(head)

        held = await standby.wait(lease, settings.database, state.stop, console, on_waiting)
        if held is None:
            for child in started:
                await child.stop()
            return 0
        try:
            http.take_over()
            return await _run(held.in_term(settings), node, started, held, listeners, state, console)
        finally:
            held.release()  # last, because another machine then takes over at once


async def _run(
    settings: GatewaySettings,
    node: RayNode,
    children: list[Supervisor],
    held: standby.HeldLease | None,
    listeners: Sequence[ListeningSocket],
    state: DriverState,
    console: Console,
) -> int:
    """Start the other processes, wait for the stop signal, drain the gateway and stop all processes."""
    stop = state.stop
    store, account = settings.config.store, settings.config.server.account
    create_token = partial(
        first_token, settings.database, store.url, account, os.environ.get(logs.TOKEN_VARIABLE)
    )
    secret = await (create_token() if held is None else held.retry(create_token))
    # Ray's processes inherit the environment. Only the gateway gets the secrets, in its settings.
    settings = msgspec.structs.replace(settings, secrets=take_secrets())
    tail = asyncio.get_running_loop().create_task(follow_log(settings.log_file, sys.stderr))
    announcing: list[asyncio.Future[None]] = []

    async def started() -> None:
        state.past_first_start = True
        if settings.ui:  # only now, because the imports of the UI would slow down the start of the gateway
            children.append(ui_supervisor(settings))
            await children[-1].start()
        service_manager.ready(url(settings))
        announcing.append(asyncio.ensure_future(announce(settings, secret, console)))

    try:
        await node.start()
        own_process.stop_on_signals(stop)  # Ray has replaced the signal handlers
        for listener in listeners:
            listener.hand_out()
        watches = [node.watch()] if held is None else [node.watch(), held.watch()]
        await _unless_lost(watches, _until_stopped(stop, node, settings, started, console))
    except (RayLost, LeaseLost) as error:
        # Kill the gateway at once, because it would accept predictions that cannot run. The accepted
        # predictions are in the store.
        kill_marked(own_process.HOME_MARK, str(settings.home))
        node.abandon()
        if not state.starts_again(error):
            raise
        if isinstance(error, LeaseLost):
            console.print(
                f"{error.detail}: this machine becomes the standby",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        else:
            _log.error("%s: restarting the appliance; it continues the accepted predictions", error.detail)
        service_manager.restarting(error.detail)
        return _RESTART
    finally:
        for task in (tail, *announcing):
            task.cancel()
        for listener in listeners:
            listener.close()
        await node.stop()
        for child in children:
            await child.stop()
        kill_leftover_workers(settings.run_dir)
    return 0


def _ray_node(settings: GatewaySettings, temp: Path) -> RayNode:
    """Import Ray, which takes seconds, and exclude the URLs of this machine from the proxies."""
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # Serve would import it, and needs it not
    from appliance.cluster.ray_node import RayNode, node_address

    own_host = urlsplit(os.environ[self_url.URL_VARIABLE]).hostname or settings.host
    binding = cluster_head.ray_binding(settings.config.cluster, settings.head)
    own_address = node_address() if binding is None else binding.host
    os.environ |= proxies.bypass(os.environ, [own_address, own_host])
    return RayNode(temp, binding)


async def _unless_lost(watches: Sequence[Coroutine[Any, Any, None]], work: Coroutine[Any, Any, None]) -> None:
    """Wait for ``work``, but raise the error of a watch at once.

    Raises:
        RayLost: an essential process of Ray has ended.
        LeaseLost: this machine is no longer the head.
    """
    working, *watching = tasks = [asyncio.ensure_future(each) for each in (work, *watches)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await next((watch for watch in watching if watch.done()), working)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1.0)  # cancelled calls of Ray may go on


async def _until_stopped(
    stop: asyncio.Event,
    node: RayNode,
    settings: GatewaySettings,
    started: Callable[[], Awaitable[None]],
    console: Console,
) -> None:
    """Run the gateway until ``stop`` is set, then drain it. Calls ``started`` when the gateway answers."""
    from appliance.gateway.start import start_gateway

    stopping = asyncio.ensure_future(stop.wait())
    starting = asyncio.ensure_future(
        node.run_gateway(start_gateway, settings, lambda: _answers(settings, "/healthz"))
    )
    await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # stopped during the start, so no prediction runs
        service_manager.stopping(0.0)
        starting.cancel()
        return
    await starting
    await started()
    reloads = asyncio.ensure_future(_reload_on_hangup(node, stop, console))
    await stopping
    reloads.cancel()
    patience = settings.in_force.server.drain_timeout
    service_manager.stopping(patience)
    console.print(f"stopping the appliance: running predictions get up to {patience:g} s", highlight=False)
    left = await node.drain_gateway(patience)
    if left:
        console.print(f"{left} predictions have not finished: they run when the appliance is started again")


async def _reload_on_hangup(node: RayNode, stop: asyncio.Event, console: Console) -> None:
    """Reload models.yaml at each SIGHUP. If SIGHUP came because the terminal was closed, set ``stop``."""
    hung_up = asyncio.Event()
    at_terminal = os.isatty(0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    while True:
        await hung_up.wait()
        hung_up.clear()
        if at_terminal and not os.isatty(0):
            stop.set()
            return
        try:
            applied, report = await node.reload_gateway()
        except Exception as error:  # noqa: BLE001 - the next SIGHUP may succeed
            applied, report = False, str(error)
        heading = "models.yaml is reloaded" if applied else "models.yaml is not reloaded"
        console.print(f"{heading}: {report}", highlight=False, markup=False, soft_wrap=True)


async def _answers(settings: GatewaySettings, path: str) -> bool:
    own = local_url(settings.host, settings.port, tls=settings.config.server.tls is not None)
    # The certificate may not be valid for the local URL. No check is needed: this process started the server.
    context = httpx.create_ssl_context(verify=False, trust_env=False)
    certificate = _own_certificate(settings)
    if certificate is not None:
        context.load_cert_chain(certificate)
    async with httpx.AsyncClient(trust_env=False, verify=context) as client:
        try:
            reply = await client.get(f"{own}{path}", headers={"accept": "text/html"}, timeout=2.0)
        except httpx.HTTPError:
            return False
    return not reply.is_error  # "/" redirects to the sign-in


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m appliance.driver.main")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--no-pull", action="store_true")
    parser.add_argument("--ui", action=argparse.BooleanOptionalAction)
    arguments = parser.parse_args()
    console = own_process.DriverConsole()
    environment = dict(os.environ)
    state = DriverState(past_first_start=os.environ.pop(_WAS_RUNNING, None) is not None)
    try:
        code = _serve(arguments, console, state)
    except ApplianceError as error:
        text = str(error) or error.detail
        own_process.DriverConsole(stderr=True).print(
            f"appliance: {text}", style="red", markup=False, soft_wrap=True
        )
        if not state.starts_again(error):
            return 2 if isinstance(error, ConfigError) else 1
        own_process.wait_to_restart(console)
        code = _RESTART
    except Exception as error:
        if not state.starts_again(error):
            raise
        _log.exception("the driver failed: starting again")
        own_process.wait_to_restart(console)
        code = _RESTART
    if code == _RESTART:
        own_process.restart({**environment, _WAS_RUNNING: "1"}, state.options)
    return code


def _serve(arguments: argparse.Namespace, console: Console, state: DriverState) -> int:
    config = configuration.load(arguments.config)
    home = (arguments.home or configuration.home(config)).absolute()
    port = arguments.port or config.server.port
    if arguments.home is None or arguments.port is None:
        state.options = ("--home", str(home), "--port", str(port))
    permissions.restrict()
    settings = GatewaySettings(
        config=config,
        home=home,
        host=arguments.host or config.server.host,
        port=port,
        devices=machine.discover(config.hardware),
        config_file=arguments.config.absolute(),
        ui=config.ui.enabled if arguments.ui is None else arguments.ui,
        pull=not arguments.no_pull,
    )
    prepare_home(settings)
    logs.configure(settings.log_file, config.logging)
    permissions.tighten(home)
    with home_lock.take(home):
        killed = {*kill_leftover_workers(settings.run_dir), *kill_marked(own_process.HOME_MARK, str(home))}
        if killed:
            console.print(f"killed {len(killed)} processes of an earlier appliance that did not stop cleanly")
        runtime.forget(settings.run_dir)
        check_tls(config)
        if config.server.tls is not None:
            client_certificates.create(config.server.tls, settings.run_dir)
        own_process.check_shared_memory()
        settings = msgspec.structs.replace(settings, head=cluster_head.prepare(config.cluster, home))
        with (
            ListeningSocket(settings.host, settings.port, settings.listener_socket) as listener,
            cluster_head.agent_listener(config.cluster, settings.head, settings.agent_socket) as agent,
        ):
            temp = temporary_folder.make(home)
            os.environ[own_process.HOME_MARK] = str(
                home
            )  # all processes that are started from here on inherit it
            temporary_folder.use(temp)
            os.environ |= self_url.environment(config, settings.host, settings.port, settings.run_dir)
            if not arguments.no_pull:
                pull_missing(settings, console)
            try:
                listeners = [listener] if agent is None else [listener, agent]
                return asyncio.run(run(settings, temp, listeners, console, state))
            finally:
                kill_marked(own_process.HOME_MARK, str(home))  # processes that did not end in time


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # Ray's exit handlers would wait for dead processes
