"""The driver of a node: joins a cluster, and starts, supervises and stops the processes of this machine.

``appliance join`` prepares the environment and then executes ``python -m appliance.driver.node``. When
the head is unreachable or has removed this node, the driver ends all processes, and replaces itself with a
new driver (``exec``, with the same process id), which joins again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from rich.console import Console

from appliance import __version__, machine
from appliance.domain.errors import (
    ApplianceError,
    ConfigError,
    HeadUnreachable,
    JoinRefused,
    NodeError,
    RayLost,
)
from appliance.driver import (
    home_lock,
    node_http,
    own_process,
    permissions,
    proxies,
    service_manager,
    temporary_folder,
    zygote,
)
from appliance.driver.node_settings import NodeSettings, prepare_home
from appliance.driver.supervisor import Supervisor
from appliance.machine import Device
from appliance.machine.gpus import Gpus
from appliance.machine.memory_use import device_usage
from appliance.machine.processes import kill_marked
from appliance.nodes import identity
from appliance.nodes.identity import Identity, JoinToken
from appliance.nodes.joining import Head, join
from appliance.nodes.messages import Admitted, NodeFacts
from appliance.nodes.node_agent import NodeAgent
from appliance.nodes.registry import bind, cluster_folder
from appliance.observability import logs
from appliance.runners.child_environment import take_secrets
from appliance.worker import handle
from appliance.worker.cleanup import kill_leftover_workers, pid_folder

if TYPE_CHECKING:
    from appliance.cluster.ray_node import RayWorkerNode

_log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_DELAY: Final = 1.0  # seconds between attempts to reach the head; doubles with each attempt
_MAX_RETRY_DELAY: Final = 5.0  # seconds
#: Seconds for which a refused node tries again: the head may still be removing what ran here before.
_RETRY_TIMEOUT: Final = 60.0
#: Share of ``lost_after`` after which a node ends: before the head runs its predictions on other nodes.
_OWN_SHARE: Final = 0.8
_CHECK_INTERVAL: Final = 1.0  # seconds between checks of the membership
#: Seconds after which a node leaves a head whose port is open but whose gateway does not answer. That machine
#: may hang or have new keys, and another machine may be the head.
_GATEWAY_TIMEOUT: Final = 300.0
#: Environment variable that tells a new driver that the one it replaces was a member of the cluster.
_WAS_MEMBER: Final = "APPLIANCE_WAS_MEMBER"


class MembershipLost(Exception):
    """This machine is no longer a member of the cluster, and has to join again."""


class NodeProcess:
    """The processes of a node, from joining to leaving the cluster."""

    def __init__(
        self,
        settings: NodeSettings,
        token: JoinToken,
        temp: Path,
        console: Console,
        on_leave: Callable[[], None],
    ) -> None:
        """``on_leave`` is called when this machine begins to leave the cluster."""
        self._settings = settings
        self._token = token
        self._temp = temp
        self._console = console
        self._on_leave = on_leave
        self._devices = machine.discover(settings.hardware)
        self._incarnation = secrets.token_hex(8)
        self._host, self._port = settings.heads[0]  # of the head
        self._zygote: Supervisor | None = None
        self._ray: RayWorkerNode | None = None
        self._agent: NodeAgent | None = None
        self.has_joined = False

    async def run(self, stop: asyncio.Event) -> None:
        """Join, work until ``stop`` is set, and leave.

        Raises:
            MembershipLost: the head is unreachable or has removed this node, or Ray has ended: join again.
            ApplianceError: this machine cannot join.
        """
        try:
            admission = await _unless_stopped(stop, self._join())
            if admission is None:
                return
            own, admitted = admission
            settings = self._settings
            head = Head(own, admitted.head, self._host, self._port, settings.address)
            await self._start(own, admitted)
            watching = asyncio.ensure_future(self._watch_ray())
            if await _unless_stopped(stop, self._announce(head, admitted)) is None:
                watching.cancel()
                return
            self.has_joined = True
            self._console.print(
                f"node {settings.name} has joined {self._head_address}", highlight=False, soft_wrap=True
            )
            service_manager.ready(f"{admitted.host}:{settings.port} as a node of {self._head_address}")
            stopping = asyncio.ensure_future(stop.wait())
            member = asyncio.ensure_future(self._watch_membership(head, _OWN_SHARE * admitted.lost_after))
            tasks = {watching, stopping, member}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()  # raises MembershipLost
                task.cancel()
            await self._leave(head, admitted.drain_timeout)
        finally:
            await self._end()

    # -- joining -------------------------------------------------------------------------------------------

    async def _join(self) -> tuple[Identity, Admitted]:
        """Get a certificate from the head. Waits as long as no machine answers as the head."""
        delay, logged = _RETRY_DELAY, False
        while True:
            unreachable, refusal = [], None
            for host, port in self._settings.heads:
                self._host, self._port = host, port
                try:
                    return await self._join_head()
                except HeadUnreachable as error:
                    unreachable.append(str(error))
                except JoinRefused as error:  # another machine may be the head
                    refusal = refusal or error
            if refusal is not None:
                raise refusal
            if not logged:
                text = f"{'; '.join(unreachable)}: trying again until it answers"
                self._console.print(text, highlight=False, soft_wrap=True)
                _log.warning("%s", text)
            logged = True
            await asyncio.sleep(delay)
            delay = min(2 * delay, _MAX_RETRY_DELAY)

    async def _join_head(self) -> tuple[Identity, Admitted]:
        settings = self._settings
        return await join(
            cluster_folder(settings.home),
            self._token,
            self._host,
            self._port,
            name=settings.name,
            version=__version__,
            device=self._devices[0].kind,
            own_address=settings.address,
        )

    @property
    def _head_address(self) -> str:
        return f"{self._host}:{self._port}"

    async def _start(self, own: Identity, admitted: Admitted) -> None:
        settings = self._settings
        os.environ |= identity.ray_variables(own)
        self._zygote = zygote.supervisor(
            settings.home, settings.zygote_socket, self._devices[0].kind, lambda: admitted.modules
        )
        await self._zygote.start()  # before Ray is imported, because the first model needs its imports
        agent = NodeAgent(own, self._facts(admitted), in_use=_measure(self._devices), prepare=self._prepare)
        self._agent = agent
        await agent.start(_listener(admitted.host, settings.port))
        os.environ["RAY_AUTH_TOKEN"] = admitted.ray_token
        os.environ |= proxies.bypass(os.environ, [admitted.host, self._host])
        self._ray = _ray_node(settings.name, admitted, self._temp)
        self._ray.start()

    def _facts(self, admitted: Admitted) -> NodeFacts:
        settings = self._settings
        system = os.uname()
        return NodeFacts(
            name=settings.name,
            host=admitted.host,
            port=settings.port,
            devices=self._devices,
            threads=settings.hardware.threads or max(1, machine.cpu_threads() - 1),
            version=__version__,
            labels={"host": system.nodename, "system": f"{system.sysname} {system.release}"},
            run_dir=str(settings.run_dir),
            outputs=str(settings.run_dir / "outputs"),
        )

    async def _prepare(self, modules: list[str]) -> None:
        await handle.prepare(self._settings.zygote_socket, modules)

    async def _announce(self, head: Head, admitted: Admitted) -> bool:
        """Become a member, and return True."""
        deadline = time.monotonic() + _RETRY_TIMEOUT + admitted.lost_after
        while True:
            try:
                await head.announce(self._facts(admitted), self._incarnation)
            except (JoinRefused, HeadUnreachable) as error:
                if time.monotonic() > deadline:
                    if isinstance(error, HeadUnreachable):
                        raise MembershipLost(str(error)) from error
                    # no JoinRefused, because the reason may be temporary
                    raise ApplianceError(str(error)) from error
                _log.warning("the head does not accept this node yet: %s", error)
                await asyncio.sleep(_RETRY_DELAY)
            else:
                return True

    # -- membership ----------------------------------------------------------------------------------------

    async def _watch_ray(self) -> None:
        if self._ray is not None:
            try:
                await self._ray.watch()
            except RayLost as error:
                raise MembershipLost(error.detail) from error

    async def _watch_membership(self, head: Head, lost_after: float) -> None:
        """Never return: raise ``MembershipLost`` once this node is no longer a member.

        As long as the head pings the agent, the node is a member. Otherwise this node asks the head. While
        the gateway of the head restarts, requests get no answer, but the driver there keeps the port open.
        """
        reached = answered = time.monotonic()
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            if self._agent is not None:
                reached = max(reached, self._agent.last_ping)
                answered = max(answered, self._agent.last_ping)
            silence = time.monotonic() - reached
            if silence < lost_after / 2:
                continue
            if await head.is_listening(max(_CHECK_INTERVAL, lost_after - silence)):
                reached = time.monotonic()
                try:
                    is_member = await head.counts_as_member(self._incarnation)
                except HeadUnreachable as error:  # a gateway restarts
                    if time.monotonic() - answered >= _GATEWAY_TIMEOUT:
                        raise MembershipLost(
                            f"the gateway of the head at {self._head_address} has not answered for "
                            f"{_GATEWAY_TIMEOUT:g} s: {error}"
                        ) from error
                    continue
                if not is_member:
                    raise MembershipLost("the head has removed this node")
                answered = time.monotonic()
            elif time.monotonic() - reached >= lost_after:
                raise MembershipLost(f"the head at {self._head_address} cannot be reached")

    async def _leave(self, head: Head, drain_timeout: float) -> None:
        """Let the running predictions finish, and tell the head that this node stops."""
        self._on_leave()
        service_manager.stopping(drain_timeout)
        self._console.print(
            f"stopping the node: running predictions get up to {drain_timeout:g} s", highlight=False
        )
        try:
            await head.leave(self._incarnation)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_timeout):
                    while _has_workers(self._settings.run_dir):
                        await asyncio.sleep(0.2)
            await head.left(self._incarnation)
        except (HeadUnreachable, NodeError) as error:
            _log.warning("the head does not know that this node stops: %s", error)

    async def _end(self) -> None:
        """Stop all processes of this membership. Worker processes are killed first.

        When the head has lost this node, it runs their predictions on other nodes.
        """
        with _log_errors("the worker processes"):
            kill_leftover_workers(self._settings.run_dir)
        if self._agent is not None:
            with _log_errors("the agent"):
                await self._agent.close()
        if self._zygote is not None:
            with _log_errors("the zygote"):
                await self._zygote.stop()
        if self._ray is not None:
            with _log_errors("Ray"):
                self._ray.stop()
        with _log_errors("the worker processes"):
            kill_leftover_workers(self._settings.run_dir)  # a load may have begun meanwhile


@contextlib.contextmanager
def _log_errors(part: str) -> Iterator[None]:
    """Log an error of one shutdown step, so that the next steps run and the node joins again.

    ``part`` names what the step stops. ``kill_marked`` kills processes that remain.
    """
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever has failed, the next steps are needed
        _log.exception("%s of this node did not stop cleanly", part)


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of ``work``; or cancel it and return None as soon as ``stop`` is set."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()


def _has_workers(run_dir: Path) -> bool:
    folder = pid_folder(run_dir)
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _measure(devices: tuple[Device, ...]) -> Callable[[], dict[str, int]]:
    return partial(device_usage, devices, Gpus.connect() if devices[0].kind == "cuda" else None)


def _listener(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ApplianceError(
                f"the head sees this machine at {host}, which is no address of this machine: machines behind "
                "network address translation cannot join; connect both over a network without it, or a VPN"
            ) from error
        raise ApplianceError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another port with --port"
        ) from error


def _ray_node(name: str, admitted: Admitted, temp: Path) -> RayWorkerNode:
    """Import Ray, which takes seconds and reads the environment."""
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # Ray would import it, and needs it not
    from appliance.cluster.ray_node import RayBinding, RayWorkerNode

    binding = RayBinding(
        node=name,
        host=admitted.host,
        gcs_port=0,  # only the head has one
        node_manager_port=admitted.node_manager_port,
        object_manager_port=admitted.object_manager_port,
        worker_ports=admitted.worker_ports,
    )
    return RayWorkerNode(temp, binding, admitted.ray_address)


async def _run(settings: NodeSettings, token: JoinToken, temp: Path, console: Console) -> bool:
    """Run one membership; return whether to join again."""
    stop = asyncio.Event()
    own_process.stop_on_signals(stop)
    node: NodeProcess | None = None
    try:
        async with node_http.serving(settings.http, settings.home / "logs" / "http.log") as on_leave:
            node = NodeProcess(settings, token, temp, console, on_leave)
            await node.run(stop)
            return False
    except MembershipLost as error:
        reason = str(error)
    except Exception as error:
        if node is None or not node.has_joined:
            raise
        _log.exception("this node failed: starting again")
        reason = f"this node failed: {error}"
    if stop.is_set():
        return False
    _log.error("%s: ended all processes of this node; it joins again", reason)
    console.print(f"{reason}: joining again", highlight=False, markup=False, soft_wrap=True)
    service_manager.restarting(reason)
    return True


def _serve(settings: NodeSettings, console: Console) -> bool:
    """Run one membership, alone in the data folder; return whether to join again."""
    permissions.restrict()
    log = prepare_home(settings)
    logs.configure(log)
    permissions.tighten(settings.home)
    token = JoinToken.parse(os.environ.get(identity.TOKEN_VARIABLE, ""))
    take_secrets()
    with home_lock.take(settings.home):
        mark = own_process.HOME_MARK, str(settings.home)
        killed = {*kill_leftover_workers(settings.run_dir), *kill_marked(*mark)}
        if killed:
            console.print(f"killed {len(killed)} processes of an earlier node that did not stop cleanly")
        own_process.check_shared_memory()
        temp = temporary_folder.make(settings.home)
        os.environ[own_process.HOME_MARK] = str(settings.home)  # all child processes inherit it
        temporary_folder.use(temp)
        try:
            return asyncio.run(_run(settings, token, temp, console))
        finally:
            kill_marked(*mark)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m appliance.driver.node")
    parser.add_argument("settings", help="NodeSettings as JSON")
    arguments = parser.parse_args()
    console = own_process.DriverConsole()
    environment = dict(os.environ)
    was_member = os.environ.pop(_WAS_MEMBER, None) is not None
    try:
        again = _serve(msgspec.json.decode(arguments.settings, type=NodeSettings), console)
    except ApplianceError as error:
        text = str(error) or error.detail
        own_process.DriverConsole(stderr=True).print(
            f"appliance: {text}", style="red", markup=False, soft_wrap=True
        )
        if not was_member or isinstance(error, JoinRefused):
            return 2 if isinstance(error, ConfigError) else 1
        own_process.wait_to_restart(console)  # this machine could join before, so the reason may be temporary
        again = True
    except Exception:
        if not was_member:
            raise
        _log.exception("this node failed: starting again")
        own_process.wait_to_restart(console)
        again = True
    if again:
        own_process.restart({**environment, _WAS_MEMBER: "1"})
    return 0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # Ray's exit handlers would wait for dead processes
