"""An asynchronous Cog project that streams, four at a time."""

import asyncio

from cog import AsyncConcatenateIterator, BaseRunner, Input


class Runner(BaseRunner):
    async def setup(self) -> None:
        self.running = 0

    async def run(
        self,
        text: str = Input(description="What to say", default="canary"),
        delay: float = Input(description="Seconds between the parts", default=0.0),
    ) -> AsyncConcatenateIterator[str]:
        self.running += 1
        try:
            print("at once:", self.running)
            for part in ("hello ", "there, ", text):
                await asyncio.sleep(delay)
                yield part
        except asyncio.CancelledError:
            print("cleaned up")
            raise
        finally:
            self.running -= 1
