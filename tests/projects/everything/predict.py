"""A Cog project that uses most of what Cog offers its authors."""

import os
import subprocess
import sys
import time
from typing import List, Optional

from cog import BaseModel, BasePredictor, Input, Path, Secret


class Output(BaseModel):
    text: str
    file: Path
    several: List[Path]
    facts: dict


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("setting up")
        self.greeting = os.environ["GREETING"]

    def predict(
        self,
        prompt: str = Input(description="What to say"),
        image: Path = Input(description="A file", default=None),
        files: List[Path] = Input(description="Files", default=[]),
        mode: str = Input(description="How", choices=["plain", "loud"], default="plain"),
        times: int = Input(description="How often", default=1, ge=1, le=5),
        seed: int = Input(description="A number, or none", default=None),
        password: Secret = Input(description="A secret", default=None),
        hint: Optional[str] = Input(description="May be left out"),
        fail: str = Input(description="Fail with this", default=""),
        sleep: float = Input(description="Seconds to sleep", default=0),
        crash: bool = Input(description="End the worker", default=False),
    ) -> Output:
        print("said", prompt)
        print("complained", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo from a child"], check=True)
        sys.stderr.write("50%|#####     | 1/2\n")
        self.record_metric("things", 1)
        self.record_metric("things", 2, mode="incr")
        if fail:
            raise ValueError(fail)
        if crash:
            os._exit(3)
        time.sleep(sleep)
        text = " ".join([self.greeting, prompt] * times)
        if mode == "loud":
            text = text.upper()
        Path("/tmp/cog-test-main.txt").write_text(text)
        several = []
        for number, file in enumerate([image, *files] if image else files):
            assert isinstance(file, Path), type(file)
            copy = Path(f"/tmp/cog-test-{number}.bin")
            copy.write_bytes(file.read_bytes())
            several.append(copy)
        facts = {
            "seed": seed,
            "hint": hint,
            "password": None if password is None else len(password.get_secret_value()),
            "shown": str(password),
            "name": image.name if image else None,
        }
        return Output(text=text, file=Path("/tmp/cog-test-main.txt"), several=several, facts=facts)
