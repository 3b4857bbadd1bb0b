"""The driver of a node: what it checks before it joins."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cluster.replicas import RUNNER
from appliance.domain.errors import ApplianceError
from appliance.driver.node import NodeSettings, prepare_home
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
