"""A prediction that ends the worker process does not take others with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from appliance.domain.prediction import Status
from tests.support.engine_bench import Bench, entry


async def test_those_that_ran_beside_a_crash_run_alone_and_succeed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.echo = entry(concurrency=4)
    await bench.start()
    good = [await bench.submit(text=f"{number}", delay=0.3) for number in range(3)]
    bad = await bench.submit(delay=30)
    for attempt in (1, 2):
        while (await bench.until(bad, Status.PROCESSING)).attempt < attempt:
            await asyncio.sleep(0.005)
        bench.cluster.lose("test/echo", "was killed by signal 11")
    ended = [await bench.ended(each) for each in (*good, bad)]
    assert [each.status for each in ended] == [Status.SUCCEEDED] * 3 + [Status.FAILED]
    assert "signal 11 (attempt 2)" in str(ended[-1].error)
