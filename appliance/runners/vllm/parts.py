"""Lets vLLM run one model on several machines: one part on each, without authentication between them.

vLLM's own options make the parts find each other. This module sets them and changes four things in vLLM
0.32: the first part listens on its own address only, all parts get the seed of the first one, pipelines
work on a CPU without compilation, and the first steps have no time limit. The engine core and vLLM's
workers are forks of the worker process, and inherit the changes. Tested on CPUs, not on GPUs.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import psutil

from appliance.domain.errors import LoadFailed

if TYPE_CHECKING:
    from datetime import timedelta

    from appliance.runners.base import LoadSpec, Part

#: Steps without a limit, computed while the model is loaded. torch compiles twice: for the several tokens of
#: a prompt, and for the one token of a later step.
FIRST_STEPS: Final = 2
#: Seconds that a later step may take. Only this limit shows that the network to another machine is cut.
STEP_LIMIT: Final = 60
STEP_LIMIT_ON_CPUS: Final = 300  # vLLM's default: a step with many tokens may take more than a minute
#: Name of the variable with which vLLM sets the limit. A value in the environment is kept.
_STEP_VARIABLE: Final = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
_SCHEME: Final = "appliance-parts"  # of the URL with which torch finds the other parts
_SEED: Final = "appliance/seed"  # key in torch's store


def is_follower(spec: LoadSpec) -> bool:
    return spec.part is not None and spec.part.index > 0


def step_limit() -> int:
    """Return vLLM's limit for a step in seconds."""
    return int(os.environ[_STEP_VARIABLE])


def engine_arguments(spec: LoadSpec, devices: int) -> dict[str, Any]:
    """Return the arguments of vLLM's engine for the part, which has ``devices`` on its machine."""
    part = spec.part
    if part is None:
        return {
            "tensor_parallel_size": devices,
            "distributed_executor_backend": "uni" if devices == 1 else "mp",
        }
    across = spec.options["across_machines"] == "tensor"
    return {
        "tensor_parallel_size": devices * part.count if across else devices,
        "pipeline_parallel_size": 1 if across else part.count,
        "distributed_executor_backend": "mp",
        "nnodes": part.count,
        "node_rank": part.index,
        "master_addr": part.leader,
        "master_port": part.port,
    }


def set_environment(part: Part, *, on_cpus: bool) -> None:
    """Make vLLM, gloo and NCCL listen on the part's address, and limit the time of a step.

    Raises:
        LoadFailed: this machine does not have the address.
    """
    addresses = {
        name: [each.address for each in found if each.family == socket.AF_INET]
        for name, found in psutil.net_if_addrs().items()
    }
    name = interface(part.address, addresses)
    os.environ.update(
        VLLM_HOST_IP=part.address,
        GLOO_SOCKET_IFNAME=name,
        NCCL_SOCKET_IFNAME=f"={name}",  # "=": not other interfaces whose names begin with it
        NCCL_SOCKET_FAMILY="AF_INET",
    )
    os.environ.setdefault(_STEP_VARIABLE, str(STEP_LIMIT_ON_CPUS if on_cpus else STEP_LIMIT))


def interface(address: str, addresses: Mapping[str, Sequence[str]]) -> str:
    """Return the network interface with this IPv4 address. ``addresses`` maps interfaces to addresses.

    Raises:
        LoadFailed: no interface has the address, or vLLM would use another address of the interface.
    """
    for name, own in addresses.items():
        if address not in own:
            continue
        if own[0] != address:  # gloo and NCCL take the first one
            raise LoadFailed(
                f"a model on several machines needs {address} as the first address of its network interface, "
                f"but interface {name} has {address} only after others: the first is {own[0]}: change their "
                "order, or use another address for this machine (--address, cluster.address)"
            )
        return name
    if ipaddress.IPv4Address(address).is_loopback:  # an interface lists only one address of its network
        for name, own in addresses.items():
            if own and ipaddress.IPv4Address(own[0]).is_loopback:
                return name
    known = ", ".join(each for own in addresses.values() for each in own) or "none"
    raise LoadFailed(
        f"this machine does not have the address {address}, which the cluster has for it, so the parts of a "
        "model on several machines cannot find each other: correct cluster.address, or --address of a joined "
        f"node; the machine has {known}"
    )


def prepare(part: Part) -> None:
    """Change vLLM for a part of a model; call it before vLLM forks its processes."""
    _find_parts_without_open_port()
    _make_receive_buffers()
    if part.index == 0:
        _permit_slow_first_steps()


def check_ports() -> None:
    """Check that neither this worker process nor a child of it listens on all network interfaces.

    Raises:
        LoadFailed: one does, which would let every machine read and change what the parts send each other.
    """
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        for each in _connections(process):
            if each.status == psutil.CONN_LISTEN and ipaddress.ip_address(each.laddr.ip).is_unspecified:
                raise LoadFailed(
                    f"vLLM listens on all network interfaces, at port {each.laddr.port}: the model was "
                    "not loaded, because this port has no authentication"
                )


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("inet")
    except psutil.NoSuchProcess:  # a compiler that has ended meanwhile
        return []


def _find_parts_without_open_port() -> None:
    """Make the first part's store of torch listen on the address of the part, not on all interfaces."""
    from torch.distributed.rendezvous import register_rendezvous_handler
    from vllm.distributed import parallel_state

    register_rendezvous_handler(_SCHEME, rendezvous)
    state: Any = parallel_state
    state.get_distributed_init_method = lambda host, port: f"{_SCHEME}://{host}:{port}"


def rendezvous(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Any, int, int]]:
    """Yield torch's store, the rank and the number of ranks, as torch's rendezvous handlers do."""
    from torch.distributed import TCPStore
    from vllm.config import get_current_vllm_config_or_none

    parsed = urlsplit(url)
    host, port = str(parsed.hostname), int(parsed.port or 0)
    query = {name: int(values[0]) for name, values in parse_qs(parsed.query).items()}
    rank, size = query["rank"], query["world_size"]
    more: dict[str, Any] = {}
    if rank == 0:
        try:
            more["master_listen_fd"] = socket.create_server((host, port)).detach()
        except OSError as error:
            raise LoadFailed(
                f"cannot listen at {host}:{port} for the other parts: {error.strerror}"
            ) from error
    store = TCPStore(host, port, size, is_master=rank == 0, timeout=timeout, multi_tenant=True, **more)
    config = get_current_vllm_config_or_none()
    if config is not None:
        share_seed(store, rank, config.model_config)
    yield store, rank, size


def share_seed(store: Any, rank: int, model_config: Any) -> None:
    """Give all ranks the seed of the first. Ranks that choose the same token must draw the same numbers."""
    if rank == 0:
        store.set(_SEED, str(model_config.seed))
    model_config.seed = int(store.get(_SEED))


def _make_receive_buffers() -> None:
    """Make the buffers of the later machines of a pipeline on a CPU.

    vLLM makes them in its profile run, which it skips on a CPU without compilation. Then the first step
    fails.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    runner: Any = CPUModelRunner
    original = runner.initialize_kv_cache

    def initialize_kv_cache(self: Any, *arguments: Any, **keywords: Any) -> None:
        if self.intermediate_tensors is None and not get_pp_group().is_first_rank:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        original(self, *arguments, **keywords)

    runner.initialize_kv_cache = initialize_kv_cache


def _permit_slow_first_steps() -> None:
    """Remove vLLM's time limit from the first steps, which compile for a minute or more."""
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    executor: Any = MultiprocExecutor
    original = executor.collective_rpc
    unlimited = dict.fromkeys(("execute_model", "sample_tokens"), FIRST_STEPS)

    def collective_rpc(
        self: Any, method: Any, timeout: float | None = None, *arguments: Any, **keywords: Any
    ) -> Any:
        if unlimited.get(method, 0):
            unlimited[method] -= 1
            timeout = None
        return original(self, method, timeout, *arguments, **keywords)

    executor.collective_rpc = collective_rpc
