"""Installation, start and stop of the measured servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import httpx
from rich.console import Console

from appliance import config, weights
from appliance.machine import cpu_threads
from tests.support.appliance_process import ROOT, Appliance, free_port, link_weights, wait_for

BENCH: Final = ROOT / ".bench"
START_TIMEOUT: Final = 600.0  # seconds; vLLM's server compiles nothing here, but imports for long

#: Folder of the environment of another server -> its requirements.
PEERS: Final = {
    "litserve": ["litserve==0.2.19", "torch==2.13.0+cpu"],
    "bentoml": ["bentoml==1.4.39"],
    "cog": ["cog==0.23.1"],
}

LITSERVE: Final = """
import sys
import litserve

class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["input"]["text"]

    def predict(self, text):
        return text

    def encode_response(self, output):
        return {"output": output}

if __name__ == "__main__":
    workers, fast_queue = int(sys.argv[2]), sys.argv[3] == "fast"
    server = litserve.LitServer(
        Echo(), accelerator="cpu", workers_per_device=workers, fast_queue=fast_queue
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
"""
BENTOML: Final = """
import bentoml

@bentoml.service
class Echo:
    @bentoml.api
    def predict(self, text: str) -> str:
        return text
"""
COG: Final = """
from cog import BasePredictor, Input

class Predictor(BasePredictor):
    def predict(self, text: str = Input(default="")) -> str:
        return text
"""


class Running(NamedTuple):
    """A server that answers."""

    url: str
    pid: int


def echo_config(home: Path) -> Path:
    """A config with the echo model only."""
    file = home / "models.yaml"
    file.write_text("models:\n  - {name: appliance/echo, kind: echo}\n")
    return file


@contextmanager
def appliance(*, shipped: bool, ui: bool = False) -> Iterator[Appliance]:
    """A running appliance: with the ``shipped`` models.yaml or the echo model only, with pages or not."""
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
        home = Path(folder)
        if shipped:
            link_weights(home)
        running = Appliance(home, ROOT / "models.yaml" if shipped else echo_config(home), ui=ui)
        running.start(START_TIMEOUT)
        try:
            yield running
        finally:
            running.stop()


def shipped_weights(kind: str) -> Path:
    """The folder with the weights of the shipped model of this kind, fetched if need be."""
    from tests.support.appliance_process import WEIGHTS

    (model,) = (model for model in config.load(ROOT / "models.yaml").models if model.kind == kind)
    return weights.pull(WEIGHTS, model)


def threads() -> int:
    """With how many threads models of the appliance compute by default."""
    return max(1, cpu_threads() - 1)


def with_bytecode(further: dict[str, str]) -> dict[str, str]:
    """This process's environment, in which compiled code is kept, and ``further`` variables."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **further}


@contextmanager
def vllm(folder: Path, log: Path) -> Iterator[Running]:
    """The stock server on ``folder``, with the number format and limits of the appliance's model."""
    with vllm_starting(folder, log) as starting:
        wait_until_healthy(starting.url, "/health", starting.pid)
        yield starting


@contextmanager
def vllm_starting(folder: Path, log: Path) -> Iterator[Running]:
    """The server of vLLM itself, from the moment its process starts."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder), "--served-model-name", "model",
        "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32",
        "--kv-cache-memory-bytes", str(512 * 1024**2),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with _process(command, log, environment) as process:
        yield Running(f"http://127.0.0.1:{port}", process.pid)


def peer_python(name: str, console: Console) -> Path:
    """The interpreter of a peer's own environment below .bench, made if it is not there."""
    requirements = PEERS[name]
    folder = BENCH / name
    stamp = folder / "installed"
    wanted = " ".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        console.print(f"installing {wanted} into {folder.relative_to(ROOT)}")
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(ROOT / ".uv" / "bin" / "uv")
        links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
        environment = {**os.environ, **({"UV_FIND_LINKS": links} if links else {})}
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", f"{folder}/bin/python"]
        subprocess.run([*install, *requirements], check=True, env=environment)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


@contextmanager
def litserve(console: Console, workers: int = 1, *, fast_queue: bool = False) -> Iterator[Running]:
    """LitServe with a one-line model in ``workers`` processes; ``fast_queue`` connects them with ZeroMQ."""
    python = peer_python("litserve", console)
    file = _source("litserve", "server.py", LITSERVE)
    port = free_port()
    options = [str(workers), "fast" if fast_queue else "usual"]
    log = BENCH / f"litserve-{'-'.join(options)}.log"
    with _process([str(python), str(file), str(port), *options], log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, "/health", process.pid)
        yield Running(url, process.pid)


@contextmanager
def bentoml(console: Console) -> Iterator[Running]:
    """BentoML with a one-line service."""
    python = peer_python("bentoml", console)
    file = _source("bentoml", "service.py", BENTOML)
    port = free_port()
    command = [
        str(python),
        "-m",
        "bentoml",
        "serve",
        "service:Echo",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(BENCH / "bentoml" / "home")}
    with _process(command, BENCH / "bentoml.log", environment, folder=file.parent) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, "/readyz", process.pid)
        yield Running(url, process.pid)


@contextmanager
def cog(console: Console) -> Iterator[Running]:
    """Cog's own server with a one-line predictor; it runs one prediction at a time and refuses others."""
    python = peer_python("cog", console)
    file = _source("cog", "predict.py", COG)
    port = free_port()
    environment = {
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "COG_LOG_LEVEL": "error",
        "PORT": str(port),
        "PATH": f"{python.parent}:{os.environ['PATH']}",  # its worker is whatever is called python
    }
    command = [str(python), "-m", "cog.server.http", "--host", "127.0.0.1"]
    with _process(command, BENCH / "cog.log", environment, folder=file.parent) as process:
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            try:
                return (
                    str(httpx.get(f"{url}/health-check", timeout=2, trust_env=False).json()["status"])
                    == "READY"
                )
            except (httpx.HTTPError, ValueError, KeyError):
                return False

        wait_for(ready, "Cog's server", START_TIMEOUT)
        yield Running(url, process.pid)


def wait_until_healthy(url: str, path: str, pid: int) -> None:
    """Return once ``path`` answers 200; fails when the process ends before."""

    def healthy() -> bool:
        os.kill(pid, 0)
        try:
            return httpx.get(url + path, timeout=2, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    wait_for(healthy, url, START_TIMEOUT)


def _source(peer: str, name: str, text: str) -> Path:
    file = BENCH / peer / "model" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@contextmanager
def _process(
    command: list[str], log: Path, environment: dict[str, str] | None = None, *, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its own group, which is killed as a whole in the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=with_bytecode(environment or {}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        _kill_group(process.pid)
        process.wait(10)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    time.sleep(0.5)  # ports and memory come back


def lines(reply: httpx.Response) -> Iterator[str]:
    """Lines of a response, split at line feeds only; httpx also splits at characters of a model's output."""
    rest = b""
    for part in reply.iter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        yield from (line.decode() for line in whole)
