"""Cog projects in engine hosts of their own, without an appliance around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config import CogModel
from appliance.prediction import Done
from appliance.replica import Replica
from appliance.runners.base import LoadSpec
from appliance.weights import project
from tests.hosting import Caller
from tests.running import ROOT, wait_for

pytestmark = pytest.mark.integration

PROJECTS = ROOT / "tests" / "projects"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadSpec]:
    """Builds a project of ``tests/projects``; gives what to load."""
    home = tmp_path_factory.mktemp("built")

    def build(name: str, **options: Any) -> LoadSpec:
        source = {"path": str(PROJECTS / name)}
        model = CogModel.model_validate({"name": f"cog/{name}", "kind": "cog", "source": source})
        folder = project.build(home, model)
        return LoadSpec(
            model=model.name,
            version="0" * 64,
            kind="cog",
            options={"build": str(folder), "environment": {}, **options},
            weights=None,
            device="cpu",
            memory=1,
            threads=1,
            concurrency=project.described(folder)["concurrency"],
            cache=str(home / "cache"),
        )

    return build


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    replica = Replica("runner-0", str(tmp_path / "none.sock"), str(tmp_path))
    yield replica
    await replica.unload()


async def test_what_a_canceled_prediction_says_at_last_is_in_the_hosts_log(
    built: Callable[..., LoadSpec], replica: Replica, tmp_path: Path
) -> None:
    await replica.load(built("concurrent"))
    caller = Caller(replica)
    log = tmp_path / "logs" / "cog--concurrent.log"

    def cleaned(times: int) -> None:
        wait_for(lambda: log.read_text().count("cleaned up") == times, "the clean-up")

    for number in range(8):
        id = f"canceled-{number}"
        await caller.start(id, text="x", delay=60)
        await caller.begun(id)
        await caller.cancel(id)
        assert await caller.done(id) == Done("canceled")
        # The runtime tells it as the prediction's, or a moment later as nobody's.
        await asyncio.to_thread(cleaned, number + 1)
    assert await caller.run("next", text="done", delay=0) == Done("succeeded")


async def test_one_that_is_canceled_before_it_has_begun_gives_its_slot_back(
    built: Callable[..., LoadSpec], replica: Replica
) -> None:
    await replica.load(built("concurrent"))
    caller = Caller(replica)
    for number in range(8):
        await caller.start(f"canceled-{number}", text="x", delay=60)
        await asyncio.sleep(number / 1000)
        await caller.cancel(f"canceled-{number}")
    for number in range(8):
        assert await caller.done(f"canceled-{number}") == Done("canceled")
    assert await caller.run("next", text="done", delay=0) == Done("succeeded")
    assert "at once: 1\n" in caller.logs("next")
