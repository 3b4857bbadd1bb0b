"""Alive, and ready to take work: what probes are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.domain.prediction import Status
from appliance.gateway.api.admin import monitoring
from appliance.gateway.api.admin.monitoring import Check
from tests.support.api_client import Api
from tests.support.engine_bench import Bench


async def ready(api: Api) -> tuple[int, list[str]]:
    """What a probe without a token is told."""
    async with Api(api.services, None) as probe:
        assert (await probe.get("/healthz")).status_code == 200
        reply = await probe.get("/readyz")
    body: dict[str, Any] = reply.json()
    assert (body["status"] == "ready") == (reply.status_code == 200)
    return reply.status_code, body.get("reasons", [])


async def test_an_appliance_that_works_is_ready(api: Api) -> None:
    assert await ready(api) == (200, [])


async def test_one_that_drains_is_not(api: Api, bench: Bench) -> None:
    running = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    draining = asyncio.ensure_future(bench.engine.drain(30))
    await asyncio.sleep(0)
    assert await ready(api) == (503, ["it is draining"])
    await bench.engine.cancel(running.id, "me")
    await draining


async def test_one_that_cannot_write_is_not(api: Api, bench: Bench) -> None:
    await bench.store.close()
    assert await ready(api) == (503, ["the database cannot be written"])


async def test_one_whose_cluster_is_gone_is_not(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no() -> bool:
        return False

    monkeypatch.setattr(api.services.cluster, "answers", no)
    assert await ready(api) == (503, ["Ray Serve does not answer"])


async def test_one_whose_engine_has_stopped_is_not(api: Api, bench: Bench) -> None:
    (saver,) = [task for task in asyncio.all_tasks() if "Saver.run" in repr(task.get_coro())]
    saver.cancel()
    await asyncio.wait([saver])
    assert await ready(api) == (503, ["the engine has stopped"])


async def test_checks_that_hang_are_said_and_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "CHECK_TIMEOUT", 0.01)
    monkeypatch.setattr(monitoring, "REUSE_SECONDS", 0.0)
    begun = 0
    answer = asyncio.Event()

    async def works() -> bool:
        nonlocal begun
        begun += 1
        await answer.wait()
        return True

    check = Check("it hangs", works)
    assert [await check.problem() for _ in range(3)] == ["it hangs"] * 3
    assert begun == 1
    answer.set()
    assert await check.problem() is None


async def test_probes_do_not_add_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def answers() -> bool:
        nonlocal asked
        asked += 1
        return True

    monkeypatch.setattr(api.services.cluster, "answers", answers)
    monkeypatch.setattr(monitoring, "REUSE_SECONDS", 1000.0)
    async with Api(api.services, None) as probe:
        replies = await asyncio.gather(*(probe.get("/readyz") for _ in range(20)))
    assert {reply.status_code for reply in replies} == {200}
    assert asked == 1
