"""The driver of a node: what it checks before it joins, and how it joins again."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import msgspec
import pytest
from rich.console import Console

from appliance.cluster.replicas import RUNNER
from appliance.domain.errors import ApplianceError, ConfigError, HeadUnreachable, JoinRefused
from appliance.driver import node, own_process
from appliance.driver.node_settings import NodeSettings, prepare_home
from appliance.nodes.identity import Identity, JoinToken
from appliance.nodes.joining import Head
from appliance.nodes.messages import Admitted
from appliance.worker.replica import worker_socket


def settings(home: Path, name: str) -> NodeSettings:
    return NodeSettings(
        heads=(("192.0.2.1", 8770),), name=name, data=str(home), port=8770, address=None,
        threads=None, memory=None, devices={},
    )  # fmt: skip


def test_a_name_that_makes_the_paths_of_sockets_too_long(tmp_path: Path) -> None:
    home = tmp_path / "h"
    free = 107 - len(str(worker_socket(home / "run", f"{RUNNER}-999999")))
    if free < 1:
        pytest.skip("the folder for temporary files has a long path")
    assert prepare_home(settings(home, "x" * free)) == home / "logs" / "node.log"
    with pytest.raises(ApplianceError, match="1 bytes too long: choose a shorter name with --name"):
        prepare_home(settings(home, "x" * (free + 1)))


class Replaced(Exception):
    """The driver has replaced itself by a new one."""


def ran(monkeypatch: pytest.MonkeyPatch, error: Exception | None, *, was_member: bool) -> int | None:
    """Run a driver that ends with ``error``; return its exit code, or None if it is replaced by a new one."""

    def serve(*_: object) -> bool:
        assert "APPLIANCE_WAS_MEMBER" not in os.environ  # so that child processes do not get it
        if error is not None:
            raise error
        return True

    def restart(environment: Mapping[str, str]) -> NoReturn:
        assert environment["APPLIANCE_WAS_MEMBER"] == "1"
        raise Replaced

    encoded = msgspec.json.encode(settings(Path("/nowhere"), "one")).decode()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["node", encoded])
        patch.setattr(node, "_serve", serve)
        patch.setattr(own_process, "restart", restart)
        patch.setattr(own_process, "wait_to_restart", lambda _: None)
        patch.delenv("APPLIANCE_WAS_MEMBER", raising=False)
        if was_member:
            patch.setenv("APPLIANCE_WAS_MEMBER", "1")
        with contextlib.suppress(Replaced):
            return node.main()
    return None


def test_a_node_that_was_a_member_tries_to_join_until_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ApplianceError("Ray did not start on this node")
    assert ran(monkeypatch, failed, was_member=False) == 1  # a fault that the operator has to see
    assert ran(monkeypatch, failed, was_member=True) is None
    assert ran(monkeypatch, JoinRefused("another token"), was_member=True) == 1
    certificate = ConfigError("the certificate is just being replaced", key="--certificate")
    assert ran(monkeypatch, certificate, was_member=False) == 2
    assert ran(monkeypatch, certificate, was_member=True) is None
    assert ran(monkeypatch, OSError("too many open files"), was_member=True) is None
    assert ran(monkeypatch, None, was_member=False) is None  # the head is unreachable


async def test_an_error_during_shutdown_does_not_keep_a_node_from_joining_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Path) -> NoReturn:
        raise FileNotFoundError("run/hosts/945")

    monkeypatch.setattr(node, "kill_leftover_workers", fails)
    one = object.__new__(node.NodeProcess)
    one._settings, one._agent, one._zygote, one._ray = settings(tmp_path, "one"), None, None, None
    await one._end()
    assert caplog.text.count("did not stop cleanly") == 2


TOKEN = JoinToken("secret", "")


def node_process(folder: Path) -> node.NodeProcess:
    prepared = msgspec.structs.replace(
        settings(folder, "one"), heads=(("10.0.0.1", 1), ("10.0.0.2", 2)), devices={"small": 2**30}
    )
    return node.NodeProcess(prepared, TOKEN, folder, Console(file=io.StringIO()), lambda: None)


@pytest.mark.parametrize("joined", [True, False])
async def test_only_a_member_joins_again_after_an_error(
    joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(one: node.NodeProcess, _: asyncio.Event) -> NoReturn:
        one.has_joined = joined
        raise OSError("too many open files")

    monkeypatch.setattr(node.NodeProcess, "run", fails)
    running = node._run(settings(tmp_path, "one"), TOKEN, tmp_path, Console(file=io.StringIO()))
    if joined:
        assert await running
    else:  # the operator has to see the error
        with pytest.raises(OSError, match="too many open files"):
            await running


async def test_a_refusal_ends_a_join_only_if_no_other_machine_is_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def refuse(host: str) -> Any:
        asked.append(host)
        if host == "10.0.0.1":
            raise JoinRefused("a former head, with an earlier version")
        return "joined"

    one = node_process(tmp_path)
    monkeypatch.setattr(one, "_join_head", lambda: refuse(one._host))
    assert cast("object", await one._join()) == "joined"
    one._settings = msgspec.structs.replace(one._settings, heads=(("10.0.0.1", 1),))
    with pytest.raises(JoinRefused, match="a former head"):
        await one._join()
    assert asked == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


async def test_a_head_that_does_not_accept_a_node_in_time_may_accept_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is not JoinRefused, which would end a node that was a member."""

    async def refuses(*_: object) -> NoReturn:
        raise JoinRefused("node one was lost, and its models are still being removed")

    one = node_process(tmp_path)
    monkeypatch.setattr(node, "_RETRY_TIMEOUT", -1.0)
    monkeypatch.setattr(one, "_facts", lambda _: None)
    head = cast("Head", SimpleNamespace(announce=refuses))
    with pytest.raises(ApplianceError, match="still being removed") as raised:
        await one._announce(head, cast("Admitted", SimpleNamespace(lost_after=0.0)))
    assert not isinstance(raised.value, JoinRefused)


async def test_a_node_leaves_a_head_whose_port_is_open_but_whose_gateway_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine hangs, or has other keys now, and another machine may be the head."""
    questions = 0

    async def listens(_: float) -> bool:
        return True

    async def hangs(_: str) -> NoReturn:
        nonlocal questions
        questions += 1
        if questions == 3:
            monkeypatch.setattr(node, "_GATEWAY_TIMEOUT", 0.0)
        raise HeadUnreachable("no answer in time")

    monkeypatch.setattr(node, "_CHECK_INTERVAL", 0.0)
    head = cast("Head", SimpleNamespace(is_listening=listens, counts_as_member=hangs))
    with pytest.raises(node.MembershipLost, match=r"the gateway of the head at .* has not answered for 0 s"):
        await node_process(tmp_path)._watch_membership(head, 0.0)
    assert questions == 3


async def test_a_node_without_its_certificate_does_not_reach_the_head(tmp_path: Path) -> None:
    head = Head(Identity(tmp_path), "head", "10.0.0.1", 1, None)
    with pytest.raises(HeadUnreachable, match="No such file"):
        await head.counts_as_member("incarnation")
