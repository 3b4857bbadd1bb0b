"""A Cog project that says its text word by word."""

from cog import BaseRunner, ConcatenateIterator, Input


class Runner(BaseRunner):
    def run(
        self,
        count: int = Input(description="How many words", default=3, ge=1, le=10),
        seed: int = Input(description="Where to begin; the first word if it is left out", default=None),
    ) -> ConcatenateIterator[str]:
        words = ["alpha ", "beta ", "gamma ", "delta "]
        for number in range(count):
            yield words[(number + (seed or 0)) % len(words)]
