"""The routes for the machines of a cluster, with a real registry and agents."""

from __future__ import annotations

from pathlib import Path

from appliance.config import ClusterConfig
from appliance.scheduler import Capacity
from tests.support.agents import cluster
from tests.support.api_client import Api
from tests.support.engine_bench import Bench


async def test_without_a_cluster_there_are_no_nodes(api: Api) -> None:
    assert (await api.get("/admin/nodes")).json() == {"nodes": []}
    reply = await api.post("/admin/nodes/x/drain")
    assert reply.status_code == 404
    assert "no section `cluster`" in reply.json()["detail"]


async def test_the_nodes_and_their_devices(api: Api, tmp_path: Path) -> None:
    async with cluster(tmp_path, "one") as (head, (node,)):
        api.services.nodes = head.nodes
        found = (await api.get("/admin/nodes")).json()["nodes"]
    assert [(each["name"], each["role"], each["state"]) for each in found] == [
        ("head", "head", "ready"),
        ("one", "node", "ready"),
    ]
    assert found[0]["address"] == f"127.0.0.1:{head.port}"
    assert found[1]["address"] == f"127.0.0.1:{node.facts.port}"
    assert found[1]["threads"] == 3
    (device,) = found[1]["devices"]
    assert (device["name"], device["memory"]) == ("one/cpu", 10**9)
    assert found[0]["devices"][0]["used"] is not None


async def test_a_node_outside_of_the_private_network_gets_no_parts(api: Api, tmp_path: Path) -> None:
    async with cluster(tmp_path, "one") as (head, _):
        api.services.nodes = head.nodes
        for network, reason in (
            ("127.0.0.0/8", None),
            ("10.9.0.0/24", "its address 127.0.0.1 is outside of cluster.private_network (10.9.0.0/24)"),
            (None, None),
        ):
            section = ClusterConfig(address="head", private_network=network)
            api.services.config = api.services.config.model_copy(update={"cluster": section})
            found = (await api.get("/admin/nodes")).json()["nodes"]
            assert [each["no_parts_reason"] for each in found] == [None, reason]


async def test_the_reason_why_a_model_is_still_on_a_draining_node_is_shown(
    api: Api, bench: Bench, tmp_path: Path
) -> None:
    async with cluster(tmp_path, "one") as (head, _):
        api.services.nodes = head.nodes
        bench.scheduler.add_devices([Capacity("one/cpu", 10**9, node="one")])
        bench.scheduler.adopted("test/echo", ("one/cpu",), 10**6, 0.0, levels=(), level=None)
        bench.scheduler.resumed("p", "test/echo", None)
        bench.scheduler.drain_node("one")
        nodes = (await api.get("/admin/nodes")).json()["nodes"]
    assert {each["name"]: each["staying"] for each in nodes} == {
        "head": {},
        "one": {"test/echo": "1 prediction is running"},
    }


async def test_a_node_is_drained(api: Api, tmp_path: Path) -> None:
    async with cluster(tmp_path, "one") as (head, _):
        api.services.nodes = head.nodes
        drained = await api.post("/admin/nodes/one/drain")
        assert (drained.status_code, drained.json()["state"]) == (202, "draining")
        undone = await api.delete("/admin/nodes/one/drain")
        assert (undone.status_code, undone.json()["state"]) == (202, "ready")
        unknown = await api.post("/admin/nodes/two/drain")
        assert unknown.status_code == 404
        assert "there is no node two" in unknown.json()["detail"]
        of_head = await api.post("/admin/nodes/head/drain")
        assert of_head.status_code == 409
        assert "cannot be drained" in of_head.json()["detail"]
    assert [notified[0] for notified in head.events.notified] == ["joined", "draining", "not draining"]
