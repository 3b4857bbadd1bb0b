"""The messages of the driver to systemd, received by a real datagram socket."""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.driver import service_manager


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket of a service manager, whose address is in the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@appliance-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        receiving.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiving


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_the_service_manager_is_told_that_the_appliance_is_ready(manager: socket.socket) -> None:
    service_manager.ready("http://127.0.0.1:8000")
    assert received(manager) == ["READY=1", "STATUS=serving at http://127.0.0.1:8000"]


def test_the_start_of_a_standby_is_complete(manager: socket.socket) -> None:
    service_manager.standing_by("standby: waiting")
    assert received(manager) == ["READY=1", "STATUS=standby: waiting"]


def test_a_restart_is_a_status_and_not_a_stop(manager: socket.socket) -> None:
    service_manager.restarting("raylet has ended")
    assert received(manager) == ["STATUS=restarting: raylet has ended"]


def test_a_stop_requests_more_time_than_predictions_get(manager: socket.socket) -> None:
    service_manager.stopping(drain_timeout=30.0)
    assert received(manager) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=90000000", "STATUS=stopping"]


def test_without_a_service_manager_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service_manager.ready("http://127.0.0.1:8000")
    assert not caplog.records


def test_a_service_manager_that_is_gone_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        service_manager.ready("http://127.0.0.1:8000")
    assert caplog.messages == [
        (
            f"cannot notify systemd (READY=1) at the socket {tmp_path}/gone from NOTIFY_SOCKET:"
            " No such file or directory: check that the unit has Type=notify"
        )
    ]
