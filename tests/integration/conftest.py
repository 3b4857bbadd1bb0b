"""The appliance that a module's ``CONFIG`` describes, started by its command once for the module.

``VARIABLES`` of the module are in its environment.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.appliance_process import Appliance


@pytest.fixture(scope="module")
def appliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Appliance]:
    home = tmp_path_factory.mktemp("home")
    config = home / "models.yaml"
    config.write_text(request.module.CONFIG)
    running = Appliance(home, config, variables=getattr(request.module, "VARIABLES", None))
    running.start()
    yield running
    running.stop()
    assert running.processes() == []


@pytest.fixture
def client(appliance: Appliance) -> Iterator[httpx.Client]:
    with appliance.client() as signed_in:
        yield signed_in
