"""A Cog project whose setup fails."""

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        raise RuntimeError("the weights are rotten")

    def predict(self, text: str = "x") -> str:
        return text
