"""Fixtures of the integration tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from appliance.runners import preloaded_modules
from appliance.worker.replica import Replica
from tests.support.appliance_process import Appliance
from tests.support.worker_processes import VLLM_STEP_LIMIT, Zygote


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


@pytest.fixture(scope="session")
def vllm_zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A zygote as `appliance serve` starts it for language models.

    All modules share it, because its imports take longer than the load of a small model.
    ``VLLM_STEP_LIMIT`` applies to models on several machines only.
    """
    zygote = Zygote(tmp_path_factory.mktemp("run"), ",".join(preloaded_modules("vllm", "cpu")))
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", str(VLLM_STEP_LIMIT))
            stack.enter_context(zygote)
        yield zygote
