"""A prediction is watched through the API from its creation to its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.domain.errors import InvalidInput, NotFound, Unauthenticated
from appliance.ui.client import Api as Reached
from appliance.ui.client import Caller
from appliance.ui.watcher import Snapshot, Watcher
from tests.support.api_client import SECRET, Api

BASE = "http://models.example.org:8000"


@pytest.fixture
async def caller(api: Api) -> AsyncIterator[Caller]:
    reached = Reached(BASE)
    reached._http = httpx.AsyncClient(transport=api._transport, base_url=BASE)
    yield reached.caller(SECRET, BASE)
    await reached.close()


async def followed(caller: Caller, **input: Any) -> list[Snapshot]:
    created = await caller.post("/v1/predictions", {"version": "test/stream", "input": input})
    return [snapshot async for snapshot in Watcher(caller, created).snapshots()]


async def test_it_is_seen_from_its_start_to_its_end(caller: Caller) -> None:
    snapshots = await followed(caller, text="one two three", chunk_delay=0.05)
    assert (snapshots[0].record["status"], snapshots[0].output, snapshots[0].ended) == ("starting", [], False)
    assert (snapshots[-1].record["status"], snapshots[-1].output, snapshots[-1].ended) == (
        "succeeded",
        ["one ", "two ", "three"],
        True,
    )
    assert [each.ended for each in snapshots].count(True) == 1


async def test_one_that_fails_ends_too(caller: Caller) -> None:
    snapshots = await followed(caller, text="a b", after=1, fail="on purpose")
    assert snapshots[-1].record["status"] == "failed"
    assert snapshots[-1].record["error"] == "on purpose"


async def test_refusals_are_errors_of_the_tree(caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as wrong:
        await followed(caller, repeat="x")
    assert [problem.field for problem in wrong.value.problems] == ["input.repeat"]
    with pytest.raises(NotFound):
        await caller.get("/v1/models/no/model")
    with pytest.raises(Unauthenticated):
        await Caller(caller._http, "wrong", BASE).get("/v1/account")
