"""The echo runner, without a worker process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.base import LoadSpec
from appliance.runners.echo.runner import EchoRunner


def echo(**options: Any) -> EchoRunner:
    return EchoRunner(
        LoadSpec(
            model="test/echo",
            version="0" * 64,
            kind="echo",
            options=options,
            weights=None,
            device="cpu",
            memory=1,
            threads=1,
            concurrency=1,
            cache="/nonexistent",
        )
    )


async def run(runner: EchoRunner, **input: Any) -> list[Log | Output | Metric]:
    return [event async for event in runner.run(Job("a", 1, input))]


async def test_it_returns_its_text() -> None:
    assert await run(echo()) == [Output(["hello"], append=False)]
    assert await run(echo(), text="ab", repeat=3) == [Output(["ababab"], append=False)]


@pytest.mark.parametrize("text", ["one two  three\nfour ", " leading", "word", "", " "])
async def test_a_streamed_text_is_split_at_words_and_complete(text: str) -> None:
    events = await run(echo(stream=True), text=text, repeat=2)
    values = [event.values for event in events if isinstance(event, Output) and event.append]
    assert len(values) == len(events)
    assert all(len(items) == 1 for items in values)
    assert "".join(items[0] for items in values) == text * 2


async def test_each_streamed_item_is_a_word_with_what_follows_it() -> None:
    events = await run(echo(stream=True), text=" a  b\nc")
    assert events == [Output([" "]), Output(["a  "]), Output(["b\n"]), Output(["c"])]


async def test_it_fails_with_the_given_error() -> None:
    with pytest.raises(PredictionFailed, match=r"^out of ideas$"):
        await run(echo(), fail="out of ideas")


async def test_a_fault_waits_for_the_words_before_it() -> None:
    seen = []
    with pytest.raises(PredictionFailed):
        async for event in echo(stream=True).run(Job("a", 1, {"text": "1 2 3 4", "after": 2, "fail": "x"})):
            seen.append(event)
    assert seen == [Output(["1 "]), Output(["2 "])]


async def test_it_prints_and_draws_progress(capsys: pytest.CaptureFixture[str]) -> None:
    await run(echo(), print="to the log", progress=2)
    captured = capsys.readouterr()
    assert captured.out == "to the log\n"
    assert captured.err == "\r 50%|#####     | 1/2\r100%|##########| 2/2\n"


async def test_a_cancel_is_raised_after_it_was_ignored_for_a_while() -> None:
    task = asyncio.create_task(run(echo(), delay=60, ignore_cancel=0.001))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_interface_follows_the_stream_option() -> None:
    whole, streamed = EchoRunner.interface({}), EchoRunner.interface({"stream": True})
    assert not whole.iterates
    assert streamed.iterates
    assert streamed.output["x-cog-array-display"] == "concatenate"
    assert whole.input == streamed.input
    orders = [schema["x-order"] for schema in whole.input["properties"].values()]
    assert orders == list(range(len(orders)))
    assert next(iter(whole.input["properties"])) == "text"


def on_device(runner: EchoRunner) -> bytes:
    return b"" if runner._weights is None else runner._weights[:]


@pytest.mark.parametrize(("level", "kept"), [(1, 1000), (2, 0)])
async def test_a_sleeping_model_keeps_its_weights_in_main_memory_or_drops_them(level: int, kept: int) -> None:
    runner = echo(weights=1000)
    await runner.setup()
    assert runner.levels == (1, 2)
    before = on_device(runner)
    assert len(before) == 1000
    assert await runner.sleep(level) == 0
    assert (on_device(runner), len(runner._kept)) == (b"", kept)
    await runner.wake()
    assert (on_device(runner), runner._kept) == (before, b"")


async def test_sleep_returns_the_bytes_that_stay_allocated() -> None:
    runner = echo(weights=1000, residue=300)
    await runner.setup()
    assert await runner.sleep(1) == 300


async def test_without_weights_it_cannot_sleep() -> None:
    runner = echo()
    await runner.setup()
    assert runner.levels == ()
