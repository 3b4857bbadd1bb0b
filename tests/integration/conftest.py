"""Fixtures of the integration tests: an appliance for a whole module, and a replica."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from appliance.worker.replica import Replica
from tests.support.appliance_process import Appliance


@pytest.fixture(scope="module")
def appliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Appliance]:
    """The appliance that ``CONFIG`` of the module describes, with ``VARIABLES`` in its environment."""
    home = tmp_path_factory.mktemp("home")
    config = home / "models.yaml"
    config.write_text(request.module.CONFIG)
    started = Appliance(home, config, variables=getattr(request.module, "VARIABLES", None))
    with started.running():
        yield started


@pytest.fixture
def client(appliance: Appliance) -> Iterator[httpx.Client]:
    with appliance.client() as signed_in:
        yield signed_in


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    """Starts worker processes without a zygote."""
    replica = Replica("runner-0", str(tmp_path / "none.sock"), str(tmp_path))
    yield replica
    await replica.unload()
