"""A Cog project that writes and returns what runtimes have trouble with; one prediction at a time."""

import os
import subprocess
import sys
import tempfile
from typing import Any

from cog import BasePredictor, Input, Path

CHILD = "import sys; [print('child', number, 'x' * 90) for number in range(int(sys.argv[1]))]"


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("setting up")
        self.left = None

    def predict(
        self,
        say: str = Input(description="Write this and return it", default=""),
        lines: int = Input(description="Lines of 1,000 characters to write", default=0),
        child: int = Input(description="Lines of 100 characters that a child process writes", default=0),
        later: bool = Input(
            description="Leave a child process that writes when its input ends", default=False
        ),
        files: str = Input(description="Names of files to return, with spaces between", default=""),
        fail: str = Input(description="Fail with this", default=""),
        leave: int = Input(description="Call sys.exit with this; -1: do not", default=-1),
        variables: bool = Input(description="Return the environment", default=False),
    ) -> Any:
        print(say)
        for number in range(lines):
            print(f"{number:05}".ljust(1000, "x"))
        if child:
            subprocess.run([sys.executable, "-c", CHILD, str(child)], check=True)
            print("after the child")
        if later:
            self.left = subprocess.Popen(["sh", "-c", "read line; echo $line"], stdin=subprocess.PIPE)
        elif self.left is not None:
            self.left.communicate(b"written while this one ran\n")
            self.left = None
        if fail:
            raise ValueError(fail)
        if leave >= 0:
            sys.exit(leave)
        if variables:
            return dict(os.environ)
        if files:
            return {"say": say, "files": [self.file(name) for name in files.split()]}
        return say

    def file(self, name: str) -> Path:
        place = Path(tempfile.mkdtemp()) / name
        place.write_text(f"content of {name}")
        return place
