"""The same project with a predictor that runs several predictions at the same time."""

import asyncio

from cog import AsyncConcatenateIterator, BasePredictor, Input

running = 0


class Predictor(BasePredictor):
    async def setup(self) -> None:
        self.most = asyncio.Event()

    async def predict(
        self,
        text: str = Input(description="What to say"),
        together: int = Input(description="Predictions to wait for", default=1),
    ) -> AsyncConcatenateIterator[str]:
        global running
        running += 1
        print("saying", text)
        if running >= together:
            self.most.set()
        await self.most.wait()
        for letter in text:
            yield letter
            await asyncio.sleep(0.01)
        print("said", text)
        running -= 1
