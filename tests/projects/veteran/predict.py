"""A Cog project of 2023: Python 3.8, an old Cog, a system package, and commands that run during the build."""

import os
import subprocess
import sys
import time
from typing import Iterator, List

import six
from cog import BaseModel, BasePredictor, Input, Path


def printed(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode().strip()


class Output(BaseModel):
    text: str
    python: str
    facts: List[str]
    picture: Path


class Predictor(BasePredictor):
    def setup(self, weights: Path = None) -> None:
        print("setting up")
        self.phrase = Path(str(weights)).read_text() if weights else "nothing"

    def predict(
        self,
        text: str = Input(description="What to say"),
        style: str = Input(description="How", default="plain", choices=["plain", "loud"]),
        times: int = Input(description="How often", default=1, ge=1, le=5),
        seed: int = Input(description="Where to begin", default=None),
        file: Path = Input(description="A file to copy", default=None),
        delay: float = Input(description="Seconds to wait", default=0.0),
        fail: bool = Input(description="Raise an error", default=False),
        crash: bool = Input(description="End the process", default=False),
    ) -> Output:
        print("saying", text, flush=True)
        if fail:
            raise ValueError("KeyError: asked to fail")
        if crash:
            os._exit(9)
        ended = time.monotonic() + delay
        while time.monotonic() < ended:
            time.sleep(0.05)
        said = " ".join([text.upper() if style == "loud" else text] * times)
        tool = printed("veteran-tool", "x")
        picture = Path("/tmp/veteran.txt")
        picture.write_text(file.read_text() if file else "no file")
        facts = [tool, printed("hello"), os.environ["VETERAN"], open("built.txt").read().strip(), six.__version__, self.phrase]
        return Output(text=said, python="%d.%d" % sys.version_info[:2], facts=facts, picture=picture)


class TrainingOutput(BaseModel):
    weights: Path


def train(phrase: Path = Input(description="A file with what to say")) -> TrainingOutput:
    print("training")
    weights = Path("/tmp/veteran-weights.txt")
    weights.write_text(phrase.read_text())
    return TrainingOutput(weights=weights)


def words(count: int = Input(description="How many words", default=3, ge=1)) -> Iterator[str]:
    for number in range(count):
        print("word", number)
        yield str(number)
