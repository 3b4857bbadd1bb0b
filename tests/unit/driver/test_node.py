"""The driver of a node: what it checks before it joins, and how it joins again."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from appliance.cluster.replicas import RUNNER
from appliance.domain.errors import ApplianceError, JoinRefused
from appliance.driver import node, own_process
from appliance.driver.node_settings import NodeSettings, prepare_home
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
        patch.setattr(time, "sleep", lambda _: None)
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
    assert ran(monkeypatch, None, was_member=False) is None  # the head is unreachable


async def test_an_error_at_the_end_does_not_keep_a_node_from_joining_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Path) -> NoReturn:
        raise FileNotFoundError("run/hosts/945")

    monkeypatch.setattr(node, "kill_leftover_workers", fails)
    one = object.__new__(node.NodeProcess)
    one._settings, one._agent, one._zygote, one._ray = settings(tmp_path, "one"), None, None, None
    await one._end()
    assert caplog.text.count("did not stop cleanly") == 2
