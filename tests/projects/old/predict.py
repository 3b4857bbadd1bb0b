"""A Cog project for the server of Cog 0.8, as it runs in an image."""

import os
import socket
import subprocess
import sys
import time
from typing import Iterator, List

from cog import BaseModel, BasePredictor, Input, Path


class Output(BaseModel):
    text: str
    files: List[Path]
    facts: dict


def variables():
    """Return the names of the environment variables of all processes that can be seen."""
    found = set()
    for process in os.listdir("/proc"):
        # Outside of a sandbox, the processes of other users cannot be read.
        if process.isdigit() and os.access(f"/proc/{process}/environ", os.R_OK):
            try:
                with open(f"/proc/{process}/environ") as file:
                    found |= {each.partition("=")[0] for each in file.read().split("\0")}
            except OSError:
                continue
    return found


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("setting up")

    def predict(
        self,
        prompt: str = Input(description="What to say"),
        image: Path = Input(description="A file", default=None),
        mode: str = Input(description="How", choices=["plain", "loud"], default="plain"),
        times: int = Input(description="How often", default=1, ge=1, le=5),
        fail: str = Input(description="Fail with this", default=""),
        sleep: float = Input(description="Seconds to sleep", default=0),
        crash: bool = Input(description="End the process", default=False),
        allocate: int = Input(description="MiB of memory to use", default=0),
        connect: str = Input(description="IP address and port to connect to", default=""),
    ) -> Output:
        # One write for each line, because Cog 0.8 drops white space that is written on its own.
        sys.stdout.write(f"said {prompt}\n")
        sys.stdout.flush()
        sys.stderr.write("complained\n")
        subprocess.run(["sh", "-c", "echo from a child"], check=True)
        sys.stdout.flush()
        if fail:
            raise ValueError(fail)
        if crash:
            os._exit(3)
        used = bytearray(os.urandom(1024)) * 1024 * allocate
        if connect:
            host, port = connect.split(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        time.sleep(sleep)
        with open("written.txt", "a") as file:
            file.write("x")
        files = []
        for number in range(times):
            os.makedirs(f"/tmp/{number}", exist_ok=True)
            copy = Path(f"/tmp/{number}/said.txt")
            copy.write_text(f"{prompt} {number}" if image is None else image.read_text())
            files.append(copy)
        text = prompt.upper() if mode == "loud" else prompt
        facts = {
            "written": os.path.getsize("written.txt"),
            "root": sorted(os.listdir("/")),
            "greeting": os.environ["GREETING"],
            "user": os.getuid(),
            "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
            "name": image.name if image else None,
            "used": len(used),
            "foreign": sorted(name for name in variables() if name.startswith(("APPLIANCE", "REPLICATE"))),
        }
        return Output(text=text, files=files, facts=facts)
