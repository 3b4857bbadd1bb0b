"""Calls to a replica that fail, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from appliance.cluster.ray import RayCluster, _Link
from appliance.domain.errors import WorkerLost
from appliance.domain.prediction import Job
from appliance.runners.base import LoadSpec


class Handle:
    """A replica whose calls end as they are told to."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.exchange = self

    async def remote(self, *_: Any) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


class Stream:
    """The events of a replica."""

    canceled = False

    def cancel(self) -> None:
        self.canceled = True


async def sent(handle: Handle) -> tuple[RayCluster, Stream]:
    """A cluster that has sent one job to the replica behind ``handle``."""
    cluster = RayCluster(Path("socket"), Path("run"))
    link = cluster._links["a/b"] = _Link("runner-0", handle)
    link.stream = stream = Stream()
    cluster.submit("a/b", Job("p", 1, {}))
    assert link.pump is not None
    await link.pump
    return cluster, stream


async def test_only_the_events_report_a_lost_worker() -> None:
    handle = Handle(WorkerLost("it ran out of memory"))
    cluster, stream = await sent(handle)
    assert not stream.canceled  # the reason is still to come there
    cluster.submit("a/b", Job("q", 1, {}))
    await cluster.close()
    assert handle.calls == 1


@pytest.mark.parametrize("error", [RuntimeError("gone"), asyncio.CancelledError(), ValueError("unknown")])
async def test_a_failed_call_ends_the_events(error: BaseException) -> None:
    cluster, stream = await sent(Handle(error))
    assert stream.canceled
    await cluster.close()


async def test_a_replica_that_cannot_be_started_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = RayCluster(Path("socket"), Path("run"))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Serve is not there")

    monkeypatch.setattr(serve, "run_many", refuse)
    spec = LoadSpec(
        model="a/b", version="v", kind="echo", options={}, weights=None, device="cpu", memory=1, threads=1,
        concurrency=1, cache="cache",
    )  # fmt: skip
    with pytest.raises(WorkerLost, match="Serve is not there"):
        await cluster.load(spec)
    await cluster.close()
