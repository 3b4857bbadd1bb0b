"""The command line of the raylet."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray._private.node import wait_for_persisted_port

from appliance.cluster.ray_node import (
    _AGENT_PORTS,
    RayBinding,
    _bound,
    _head_options,
    _without_agents,
)


def test_the_raylet_starts_no_agents_and_waits_for_none(tmp_path: Path) -> None:
    node = ray.NodeID.from_random().hex()
    begin = ["raylet", f"--session_dir={tmp_path}", f"--node_id={node}", "--head"]
    agents = [
        "--dashboard_agent_command=python -u agent.py --head",
        "--runtime_env_agent_command=python main.py",
    ]
    end = ["--python_worker_command=python worker.py --head", "--labels="]
    assert _without_agents([*begin, *agents, *end]) == [
        *begin,
        "--dashboard_agent_command=sh -c 'exec cat'",
        "--runtime_env_agent_command=sh -c 'exec cat'",
        *end,
    ]
    for port in _AGENT_PORTS:
        assert wait_for_persisted_port(str(tmp_path), node, port, timeout_ms=0) == -1
    with pytest.raises(Exception, match="port"):
        wait_for_persisted_port(str(tmp_path), node, "another_port", timeout_ms=0)


def test_ray_gets_the_ports_of_a_cluster_only_while_it_starts() -> None:
    original = ray._private.parameter.RayParams
    binding = RayBinding(
        node="gpu-1",
        host="192.0.2.1",
        gcs_port=8771,
        node_manager_port=8772,
        object_manager_port=0,
        worker_ports=(10002, 19999),
    )
    with _bound(binding):
        made = ray._private.parameter.RayParams(num_cpus=1)
    assert (made.gcs_server_port, made.node_manager_port, made.object_manager_port) == (8771, 8772, 0)
    assert (made.min_worker_port, made.max_worker_port, made.num_cpus) == (10002, 19999, 1)
    assert ray._private.parameter.RayParams is original
    with _bound(None):
        assert ray._private.parameter.RayParams is original
    assert _head_options(binding) == {
        "_node_ip_address": "192.0.2.1",
        "resources": {"appliance-node-gpu-1": 1},
    }
