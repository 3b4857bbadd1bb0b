"""Ray and Ray Serve on this machine, started and stopped by the driver, and the gateway's deployment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

import msgspec
import ray
from ray import serve
from ray._private import services
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from appliance.domain.errors import ApplianceError, RayLost

GATEWAY: Final = "gateway"
#: Bytes. Jobs and events are sent in messages and files by path, so Ray's object store can be small.
OBJECT_STORE: Final = 128 * 1024 * 1024
START_TIMEOUT: Final = 120.0  # seconds until the gateway has to answer
#: Timeout of a call to Ray or Serve in seconds. If a process of Ray has died, such a call may never return.
_CALL_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 15.0
_CHECK_INTERVAL: Final = 0.5  # seconds between checks of Ray's processes
#: Ray's essential processes. The raylet ends when one of its agents ends.
_VITAL: Final = ("gcs_server", "raylet")

#: Methods of Ray's node that start the autoscaler, the copying of logs, and the dashboard with its reports of
#: use. Together these processes take about 160 MiB and a third of the processor time of Ray's start.
_UNUSED: Final = ("start_monitor", "start_log_monitor", "start_api_server")

#: Options of the raylet with the commands of its agents. They report metrics and prepare runtime
#: environments, which the appliance does not use, take about 125 MiB, and Ray's start waits for them. But the
#: raylet ends if its agents end, so it starts programs that run until it closes their standard input.
_AGENTS: Final = ("--dashboard_agent_command", "--runtime_env_agent_command")
_NO_AGENT: Final = "sh -c 'exec cat'"  # the shell ignores the options that the raylet adds
_raylet: Final[Any] = ray._raylet  # noqa: SLF001 - no other way
#: Ports of the agents, for which the raylet waits. Port -1 means that there is no such service, as in
#: installations of Ray without ``ray[default]`` (ray/dashboard/agent.py).
_AGENT_PORTS: Final = (
    _raylet.METRICS_AGENT_PORT_NAME,
    _raylet.METRICS_EXPORT_PORT_NAME,
    _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    _raylet.RUNTIME_ENV_AGENT_PORT_NAME,
)

#: Ray's settings (src/ray/common/ray_config_def.h). By default, Ray measures itself and records each task for
#: its agents and its dashboard, which do not run here.
_SYSTEM_CONFIG: Final = {
    "enable_metrics_collection": False,
    "event_stats": False,
    "task_events_report_interval_ms": 0,
    # Ray gives actors a niceness of 15, so any other program would slow the gateway down.
    "worker_niceness": 0,
    "preload_python_modules": ["appliance.cluster.ray_worker"],
}

#: Loggers that warn at each normal start, for example that Serve has started.
_CHATTY: Final = ("ray._private.authentication", "ray.serve")

_log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")


class RunningGateway(Protocol):
    """The gateway's methods that its Serve deployment calls."""

    async def reload(self) -> str:
        """Apply the edited config; return a report for people.

        Raises:
            ConfigError: the config has an error; nothing has changed.
        """

    async def drain(self, seconds: float) -> int:
        """Refuse new predictions; wait for running ones. Return how many did not finish in ``seconds``."""

    def check(self) -> None:
        """Raise an error if the gateway can no longer serve; Serve then replaces it."""


class GatewayReplica(Generic[S]):
    """The Serve deployment of the gateway: Serve starts it, checks it and restarts it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, factory: Callable[[S], Awaitable[RunningGateway]], settings: S
    ) -> None:
        self._gateway = await factory(settings)

    async def drain(self, seconds: float) -> int:
        return await self._gateway.drain(seconds)

    async def reload(self) -> tuple[bool, str]:
        """Apply the edited models.yaml; return whether it was applied, and a report for people."""
        try:
            return True, await self._gateway.reload()
        except ApplianceError as error:
            return False, error.detail

    def check_health(self) -> None:
        """Raise an error if the gateway can no longer serve. Serve calls this every second."""
        self._gateway.check()


class RayBinding(msgspec.Struct, frozen=True):
    """The address and ports of Ray on one machine of a cluster. Port 0 means any free port."""

    node: str  # name of the machine in the cluster
    host: str  # its IPv4 address
    gcs_port: int
    node_manager_port: int
    object_manager_port: int
    worker_ports: tuple[int, int]  # first and last

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of Ray's node that ``ray.init`` does not have."""
        first, last = self.worker_ports
        return {
            "node_manager_port": self.node_manager_port,
            "object_manager_port": self.object_manager_port,
            "min_worker_port": first,
            "max_worker_port": last,
        }


def node_resource(node: str) -> str:
    """Return Ray's resource that only the machine ``node`` of a cluster has."""
    return f"appliance-node-{node}"


class RayNode:
    """Ray and Serve on this machine, from ``start`` to ``stop``. Used on the driver's event loop."""

    def __init__(self, temp: Path, binding: RayBinding | None = None) -> None:
        """``temp`` is a folder that only this user may enter, because Ray's files in it are readable to all.

        The path must be short, because Ray's sockets are in the folder. ``stop`` removes the folder.
        ``binding`` is for the head of a cluster.
        """
        self.temp = temp
        self._binding = binding
        self._lost = False
        self._refused = False  # Ray did not start: its logs are kept until the next start

    async def start(self) -> None:
        """Start Ray, without its dashboard, and Serve, without its proxy.

        Raises:
            ApplianceError: Ray or Serve did not start.
        """
        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.ERROR)
        try:
            with _without_unused_processes(), _bound(self._binding):
                ray.init(
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    object_store_memory=OBJECT_STORE,
                    _system_config=_SYSTEM_CONFIG,
                    _temp_dir=str(self.temp / "ray"),
                    **({} if self._binding is None else _head_options(self._binding)),
                )
            await _in_time(_CALL_TIMEOUT, lambda: serve.start(proxy_location="Disabled"))
        except Exception as error:  # Ray also raises bare Exceptions
            self._refused = True
            reason = str(error) or "Serve did not answer in time"
            raise ApplianceError(
                f"Ray did not start: {reason}; its logs, if there are any, are below {self.temp}. If it had "
                "too little time, start again when the machine is less busy. If it cannot use that folder, "
                "set TMPDIR to another folder with a short path"
            ) from error

    async def run_gateway(
        self,
        factory: Callable[[S], Awaitable[RunningGateway]],
        settings: S,
        answers: Callable[[], Awaitable[bool]],
    ) -> None:
        """Deploy the gateway and return once ``answers`` returns true.

        Raises:
            ApplianceError: the gateway could not start; the message has its error.
        """
        deployment = serve.deployment(
            GatewayReplica,
            name=GATEWAY,
            num_replicas=1,
            max_ongoing_requests=1000,
            max_constructor_retry_count=1,
            health_check_period_s=1.0,
            health_check_timeout_s=30.0,
            graceful_shutdown_wait_loop_s=0.05,
            graceful_shutdown_timeout_s=5.0,
            ray_actor_options=self._on_this_machine(),
        )
        target = serve.RunTarget(deployment.bind(factory, settings), name=GATEWAY, route_prefix=None)
        try:
            await _in_time(
                _CALL_TIMEOUT,
                lambda: serve.run_many(
                    [target],
                    wait_for_applications_running=False,
                    wait_for_ingress_deployment_creation=False,
                ),
            )
            await self._until_answering(answers)
        except TimeoutError as error:
            raise ApplianceError(f"Ray Serve did not answer within {_CALL_TIMEOUT:g} s") from error
        except (RayError, serve.exceptions.RayServeException) as error:
            raise ApplianceError(f"Ray Serve could not start the gateway: {error}") from error

    def _on_this_machine(self) -> dict[str, Any]:
        """Return options of a deployment that keep it on this machine."""
        if self._binding is None:
            return {"num_cpus": 0}
        return {"num_cpus": 0, "resources": {node_resource(self._binding.node): 0.001}}

    async def _until_answering(self, answers: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not await answers():
            with contextlib.suppress(TimeoutError, RayError, serve.exceptions.RayServeException):
                # Serve's controller may be busy, or be starting again.
                application = (await _in_time(_CALL_TIMEOUT, serve.status)).applications.get(GATEWAY)
                if application is not None and application.status is ApplicationStatus.DEPLOY_FAILED:
                    raise ApplianceError(f"the gateway could not start: {_error_line(application)}")
            if time.monotonic() > deadline:
                raise ApplianceError(f"the gateway did not answer within {START_TIMEOUT:g} s")
            await asyncio.sleep(0.1)

    async def watch(self) -> NoReturn:
        """Check Ray's processes twice a second.

        Raises:
            RayLost: an essential process of Ray has ended.
        """
        while True:
            for name, process in ray._private.worker._global_node.dead_processes():  # noqa: SLF001 - no other way
                if name in _VITAL:
                    self._lost = True
                    raise RayLost(
                        f"Ray's process {name} (pid {process.pid}) ended with exit code {process.returncode}"
                    )
            await asyncio.sleep(_CHECK_INTERVAL)

    def abandon(self) -> None:
        """Let ``stop`` only remove the folder: Ray's processes are killed already."""
        self._lost = True

    async def drain_gateway(self, seconds: float) -> int | None:
        """Drain the gateway; return the number of unfinished predictions, None if it does not respond."""
        try:
            async with asyncio.timeout(seconds + 5.0):
                handle = (await _gateway()).options(_by_reference=False)
                return int(await handle.drain.remote(seconds))
        except (RayError, TimeoutError, serve.exceptions.RayServeException):
            return None

    async def reload_gateway(self) -> tuple[bool, str]:
        """Let the gateway apply the edited config; return whether that succeeded, and a report for people."""
        try:
            handle = (await _gateway()).options(_by_reference=False)
            applied, report = await handle.reload.remote()
        except (RayError, TimeoutError, serve.exceptions.RayServeException) as error:
            return False, f"the gateway does not answer: {error}: try again"
        return applied, report

    async def stop(self) -> None:
        """Stop Ray's processes, within a time limit, and remove its folder. A crashed Ray is not stopped."""
        if not self._lost:
            try:
                await _in_time(_STOP_TIMEOUT, ray.shutdown)
            except TimeoutError:
                pass
            except Exception:  # noqa: BLE001 - Ray also raises bare Exceptions; the driver kills what is left
                _log.exception("Ray did not stop cleanly")
        if not self._refused:
            shutil.rmtree(self.temp, ignore_errors=True)


def _head_options(binding: RayBinding) -> dict[str, Any]:
    """Return the options of ``ray.init`` for the head of a cluster."""
    return {"_node_ip_address": binding.host, "resources": {node_resource(binding.node): 1}}


@contextlib.contextmanager
def _bound(binding: RayBinding | None) -> Iterator[None]:
    """Let ``ray.init`` use the ports of a cluster; it has no options for them."""
    if binding is None:
        yield
        return
    more = {**binding.parameters(), "gcs_server_port": binding.gcs_port}
    original = ray._private.parameter.RayParams  # noqa: SLF001 - no other way

    def parameters(**given: Any) -> Any:
        return original(**given, **more)

    with _replaced(ray._private.parameter, "RayParams", parameters):  # noqa: SLF001 - as above
        yield


class RayWorkerNode:
    """Ray on a machine that has joined a cluster, from ``start`` to ``stop``."""

    def __init__(self, temp: Path, binding: RayBinding, head: str) -> None:
        """``temp`` is as for ``RayNode``. ``head`` is the address of Ray's gcs_server, with its port."""
        self._temp = temp
        self._binding = binding
        self._head = head
        self._node: Any = None
        self._start_failed = False  # Ray did not start: its logs are kept until the next start

    def start(self) -> None:
        """Start Ray's raylet, which joins the Ray of the head.

        Call this on the main thread: the raylet ends with the thread that started it.

        Raises:
            ApplianceError: Ray did not start.
        """
        parameters = ray._private.parameter.RayParams(  # noqa: SLF001 - no other way
            node_ip_address=self._binding.host,
            gcs_address=self._head,
            resources={node_resource(self._binding.node): 1},
            object_store_memory=OBJECT_STORE,
            include_log_monitor=False,
            temp_dir=str(self._temp / "ray"),
            **self._binding.parameters(),
        )
        try:
            with _without_unused_processes():
                self._node = ray._private.node.Node(  # noqa: SLF001 - as above
                    parameters, head=False, shutdown_at_exit=False, spawn_reaper=True
                )
        except Exception as error:  # Ray raises bare Exceptions
            self._start_failed = True
            raise ApplianceError(
                f"Ray did not start on this node: {error}: check that the firewalls of this machine and of "
                f"the head ({self._head}) let the ports of cluster.ports pass. Its logs are in {self._temp}"
            ) from error

    async def watch(self) -> NoReturn:
        """Check Ray's processes twice a second.

        Raises:
            RayLost: an essential process of Ray has ended.
        """
        while True:
            for name, process in self._node.dead_processes():
                if name in _VITAL:
                    raise RayLost(
                        f"Ray's process {name} (pid {process.pid}) ended with exit code {process.returncode}"
                    )
            await asyncio.sleep(_CHECK_INTERVAL)

    def stop(self) -> None:
        """Stop Ray's processes on this machine. Remove its folder, except after a failed start."""
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=False)
        if not self._start_failed:
            shutil.rmtree(self._temp, ignore_errors=True)


@contextlib.contextmanager
def _without_unused_processes() -> Iterator[None]:
    """Keep ``ray.init`` from starting unused processes; Ray has no option for that."""
    node = ray._private.node.Node  # noqa: SLF001 - no other way
    start_process = services.start_ray_process

    def start(command: list[str], *arguments: Any, **options: Any) -> Any:
        if command[0] == services.RAYLET_EXECUTABLE:
            command = _without_agents(command)
        return start_process(command, *arguments, **options)

    with contextlib.ExitStack() as patches:
        for name in _UNUSED:
            patches.enter_context(_replaced(node, name, lambda *_, **__: None))
        patches.enter_context(_replaced(services, "start_ray_process", start))
        yield


def _without_agents(command: list[str]) -> list[str]:
    """Return the raylet's command line without its agents, and tell the raylet that they have no ports."""
    options = dict(part.removeprefix("--").split("=", 1) for part in command[1:] if "=" in part)
    for port in _AGENT_PORTS:
        _raylet.persist_port(options["session_dir"], options["node_id"], port, -1)
    return [
        f"{name}={_NO_AGENT}" if (name := part.partition("=")[0]) in _AGENTS else part for part in command
    ]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


async def _gateway() -> Any:
    return await _in_time(_CALL_TIMEOUT, lambda: serve.get_app_handle(GATEWAY))


async def _in_time(seconds: float, call: Callable[[], T]) -> T:
    """Run ``call`` in a daemon thread and return its result.

    Raises:
        TimeoutError: the call takes longer than ``seconds``; the thread is not stopped.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # so that a late result of a cancelled call is ignored

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001  # re-raised in the awaiting coroutine
            outcome.set_exception(error)

    threading.Thread(target=work, name="ray-call", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(outcome)


def node_address() -> str:
    """Return the IP address of this machine to which Ray's processes connect."""
    return str(ray.util.get_node_ip_address())


def _error_line(application: Any) -> str:
    """Return the last line of Serve's error report, which contains a whole traceback."""
    messages = [deployment.message for deployment in application.deployments.values()]
    text = "\n".join(message for message in [*messages, application.message] if message)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    errors = [line for line in lines if "Error" in line or "errors." in line]
    return (errors or lines or ["no reason given"])[-1]
