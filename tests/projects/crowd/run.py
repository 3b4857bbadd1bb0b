"""A Cog project that gives and writes much, four predictions at a time."""

import asyncio
import os

from collections.abc import AsyncIterator

from cog import BaseRunner, Input


class Runner(BaseRunner):
    async def run(
        self,
        name: str = Input(description="Begins each line", default=""),
        items: int = Input(description="How many numbers to give", default=0),
        lines: int = Input(description="Lines of 200 characters to write", default=0),
        leave: bool = Input(description="Call sys.exit", default=False),
    ) -> AsyncIterator[int]:
        os.write(1, b"of one of them\n")
        for number in range(lines):
            print(f"{name} {number:05}".ljust(199, "x"))
            if number % 1000 == 0:
                await asyncio.sleep(0)
        if leave:
            raise SystemExit(3)
        for number in range(items):
            yield number
