"""One appliance for the whole run: the shipped models.yaml and a few echo models, started by its command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.running import ROOT, Appliance, link_weights

LANGUAGE_MODEL = "appliance/smollm2-135m-instruct"
ECHO_MODELS: list[dict[str, Any]] = [
    {"name": "test/stream", "kind": "echo", "memory": "64MiB", "options": {"stream": True}},
    {"name": "test/one-at-a-time", "kind": "echo", "memory": "64MiB", "options": {"concurrency": 1}},
]


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    home = tmp_path_factory.mktemp("home")
    link_weights(home)
    shipped = yaml.safe_load((ROOT / "models.yaml").read_text())
    shipped["models"] += ECHO_MODELS
    config = home / "models.yaml"
    config.write_text(yaml.safe_dump(shipped))
    running = Appliance(home, config)
    running.start(seconds=600)  # the first run on a machine fetches and converts the weights
    yield running
    running.stop()
    assert running.processes() == []


@pytest.fixture
def client(appliance: Appliance) -> Iterator[httpx.Client]:
    with appliance.client() as signed_in:
        yield signed_in
