"""The command line of the raylet."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import ray
from ray import serve
from ray._private.node import wait_for_persisted_port
from ray.exceptions import RayError

from appliance.cluster.ray_node import (
    _AGENT_PORTS,
    RayBinding,
    RayNode,
    RayWorkerNode,
    _bound,
    _head_options,
    _without_agents,
)
from appliance.domain.errors import ApplianceError


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


def test_the_logs_of_a_ray_that_did_not_start_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "temp" / "ray" / "raylet.err"

    def fail(*_: object, **__: object) -> None:
        log.parent.mkdir(parents=True)
        log.write_text("no route to host")
        raise OSError("the raylet ended")

    monkeypatch.setattr(ray._private.node.Node, "__init__", fail)
    binding = RayBinding("gpu-1", "192.0.2.1", 0, 8772, 0, (10002, 19999))
    node = RayWorkerNode(tmp_path / "temp", binding, "192.0.2.9:8771")
    with pytest.raises(ApplianceError, match=f"Its logs are in {tmp_path / 'temp'}"):
        node.start()
    node.stop()
    assert log.read_text() == "no route to host"


def test_the_folder_of_ray_is_removed_at_the_end(tmp_path: Path) -> None:
    binding = RayBinding("gpu-1", "192.0.2.1", 0, 8772, 0, (10002, 19999))
    (tmp_path / "temp").mkdir()
    RayWorkerNode(tmp_path / "temp", binding, "192.0.2.9:8771").stop()
    assert not (tmp_path / "temp").exists()


async def test_a_gateway_may_answer_although_serve_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, Serve's controller may not answer in time."""
    answers = iter((False, False, True))

    async def answered() -> bool:
        return next(answers)

    def fails() -> NoReturn:
        raise RayError("the controller is starting again")

    monkeypatch.setattr(serve, "status", fails)
    await RayNode(tmp_path)._until_answering(answered)


async def test_an_error_of_ray_does_not_keep_the_driver_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> NoReturn:
        raise RayError("the gcs_server does not answer")

    monkeypatch.setattr(ray, "shutdown", fails)
    (tmp_path / "temp").mkdir()
    await RayNode(tmp_path / "temp").stop()
    assert "Ray did not stop cleanly" in caplog.text
    assert not (tmp_path / "temp").exists()
