"""A Cog project with the habits of older ones."""

import ctypes
import time
from pathlib import Path as FilePath

import cog.exceptions
import iniconfig
from cog import BasePredictor, CancelationException, Input, emit_metric


class Predictor(BasePredictor):
    def setup(self, weights: str = None) -> None:
        self.weights = weights
        self.well = True

    def healthcheck(self) -> bool:
        return self.well

    def predict(
        self,
        what: str = Input(description="What to do", default="say"),
        note: str = Input(description="Where to leave a note", default=""),
    ) -> str:
        self.log("logged the old way")
        emit_metric("emitted", 1)
        if what == "stick":
            ctypes.CDLL(None).sleep(600)
        if what == "sicken":
            self.well = False
        if what == "wait":
            try:
                for _ in range(600):
                    time.sleep(0.1)
            except CancelationException:
                FilePath(note).write_text("cleaned up")
                raise
        assert iniconfig.IniConfig
        return f"weights: {self.weights} {cog.exceptions.CancelationException.__name__}"
