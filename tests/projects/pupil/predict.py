"""A Cog project that says what it was trained to say."""

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def setup(self, weights: str = None) -> None:
        self.phrase = open(weights).read() if weights else "nothing"

    def predict(self, text: str = Input(description="What to say", default="hello")) -> str:
        return f"{text}: {self.phrase}"
