"""A Cog project whose environment a test takes away."""

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, text: str = "x") -> str:
        return text
