from __future__ import annotations

import asyncio

from appliance.gateway.engine.additions import _lines


async def test_of_a_line_that_is_too_long_only_the_end_is_read() -> None:
    stream = asyncio.StreamReader(limit=8)
    reading = asyncio.ensure_future(_all(stream))
    for chunk in (b"one\n", b"x" * 30, b"y" * 30, b"end\n", b"two\n", b"z" * 100, b"!"):
        stream.feed_data(chunk)
        await asyncio.sleep(0)
    stream.feed_eof()
    lines = await reading
    assert (lines[0], lines[2]) == (b"one\n", b"two\n")
    assert lines[1].endswith(b"end\n")
    assert lines[3].endswith(b"!")
    assert len(lines) == 4
    assert max(map(len, lines)) <= 60


async def _all(stream: asyncio.StreamReader) -> list[bytes]:
    return [line async for line in _lines(stream)]
