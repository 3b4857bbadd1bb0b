"""The command line of the raylet."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray._private.node import wait_for_persisted_port

from appliance.cluster.ray_node import _AGENT_PORTS, _without_agents


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
