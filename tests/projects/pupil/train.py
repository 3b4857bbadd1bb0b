"""The pupil's lessons."""

import sys
import time

from cog import BaseModel, Input, Path


class TrainingOutput(BaseModel):
    weights: Path


def train(
    phrase: Path = Input(description="A file with what to say"),
    steps: int = Input(description="How many steps", default=2, ge=1),
) -> TrainingOutput:
    for step in range(1, steps + 1):
        print(f"step {step}/{steps}")
        sys.stderr.write(f"{100 * step // steps:3}%|{'#' * step}| {step}/{steps}\n")
        time.sleep(0.1)
    weights = Path("/tmp/cog-test-weights.txt")
    weights.write_text(phrase.read_text())
    return TrainingOutput(weights=weights)
