"""The log names a replica that does not answer, because predictions wait for it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from appliance.cluster.base import await_answer
from tests.support.appliance_process import until


async def test_a_replica_that_does_not_answer_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(await_answer(reply, "runner-7", 0.01))
    await until(lambda: len(caplog.records) >= 2)
    assert "runner replica runner-7 has not answered for" in caplog.text
    reply.set_result(b"here")
    assert await waiting == b"here"


async def test_giving_up_ends_the_call() -> None:
    reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(await_answer(reply, "runner-7"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert reply.cancelled()
