"""Time from a request to the first output: of a stopped appliance, an unloaded model, and a loaded model.

Compared with vLLM's own server, and with a new Python process that runs diffusers or transformers. All run
from compiled bytecode.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import servers
from scripts.benchmarks.statistic import Spread
from tests.support.appliance_process import Appliance, wait_for

ROUNDS: Final = 3
TARGET: Final = 1 / 8
_QUESTION: Final = "What is the capital of France?"
_PICTURE: Final = "a red circle on a black background"
_TEXT: Final = "A sentence to be compared."

DIFFUSERS: Final = """
import sys, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(int(sys.argv[2]))
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
pipeline(sys.argv[3], num_inference_steps=25, guidance_scale=4.0, generator=torch.manual_seed(1))
print("done", flush=True)
"""
EMBEDDINGS: Final = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
torch.set_num_threads(int(sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1])
with torch.inference_mode():
    inputs = tokenizer([sys.argv[3]], return_tensors="pt")
    torch.nn.functional.normalize(model(**inputs).last_hidden_state.mean(1))
print("done", flush=True)
"""


class Case(NamedTuple):
    """One model, what it is asked, and the stock way of getting the same."""

    kind: str
    model: str
    input: dict[str, Any]
    stock: Callable[[Path], float]  # from its folder of weights to seconds
    stock_name: str


def measure(console: Console, rounds: int = ROUNDS) -> dict[str, Any]:
    """Every model in turn, ours and the stock way, on the same weights."""
    folders = {case.kind: servers.shipped_weights(case.kind) for case in CASES}
    seconds: dict[str, dict[str, list[float]]] = {case.kind: defaultdict(list) for case in CASES}
    for number in range(rounds):
        for case in CASES:
            console.print(f"round {number + 1} of {rounds}: {case.stock_name}", style="dim")
            seconds[case.kind]["stock"].append(case.stock(folders[case.kind]))
        first = CASES[number % len(CASES)]  # each start shows one model that comes from nothing
        console.print(f"round {number + 1} of {rounds}: appliance", style="dim")
        began = time.perf_counter()
        with servers.appliance(shipped=True) as running:
            output(running, first)
            seconds[first.kind]["process"].append(time.perf_counter() - began)
            for case in CASES:
                output(running, case)
                _unload(running, case.model)
                seconds[case.kind]["zygote"].append(output(running, case))
                seconds[case.kind]["host"].append(output(running, case))
    return _report(console, seconds)


def _report(console: Console, seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    report: dict[str, Any] = {"target": TARGET, "seconds": seconds, "ratios": {}}
    table = Table(
        "model", "stock", "appliance serve", "from the zygote", "loaded", title="to the first output"
    )
    for case in CASES:
        stock = statistics.median(seconds[case.kind]["stock"])
        ratios = {
            name: Spread.of([each / stock for each in found])
            for name, found in seconds[case.kind].items()
            if name != "stock"
        }
        report["ratios"][case.kind] = msgspec.to_builtins(ratios)
        shown = (
            f"{ratios[name].median * stock:.2f} s ({ratios[name].median:.3f}, {ratios[name].lowest:.3f} to "
            f"{ratios[name].highest:.3f})"
            if name in ratios
            else "-"
            for name in ("process", "zygote", "host")
        )
        table.add_row(case.kind, f"{stock:.1f} s, {case.stock_name}", *shown)
    console.print(table)
    ratio = report["ratio"] = report["ratios"]["vllm"]["zygote"]["median"]
    met = "met" if ratio <= TARGET else "missed"
    console.print(f"vllm from the zygote: {ratio:.3f}; target: at most {TARGET:.3f}: {met}")
    return report


def output(running: Appliance, case: Case) -> float:
    """Seconds from the request to the first piece of the output, or to all of it where it comes at once."""
    began = time.perf_counter()
    with running.client() as client:
        created = client.post(f"/v1/models/{case.model}/predictions", json={"input": case.input})
        created.raise_for_status()
        with httpx.stream("GET", created.json()["urls"]["stream"], timeout=600, trust_env=False) as reply:
            for line in servers.lines(reply):
                if line == "event: output":
                    return time.perf_counter() - began
        record = client.get(f"/v1/predictions/{created.json()['id']}").json()
    raise RuntimeError(f"{case.model} gave no output: {record['status']}: {record['error']}")


def _unload(running: Appliance, name: str) -> None:
    with running.client() as client:
        client.post(f"/admin/models/{name}/unload").raise_for_status()

        def cold() -> bool:
            models = client.get("/admin/status").json()["models"]
            return any(model["name"] == name and model["state"] == "cold" for model in models)

        wait_for(cold, "the model to be unloaded")


def _vllm_server(folder: Path) -> float:
    """Seconds from starting vLLM's server to its first token."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": _QUESTION}],
        "temperature": 0,
        "max_tokens": 8,
        "stream": True,
    }
    began = time.perf_counter()
    with servers.vllm_starting(folder, servers.BENCH / "vllm.log") as stock:
        servers.wait_until_healthy(stock.url, "/health", stock.pid)
        address = f"{stock.url}/v1/chat/completions"
        with httpx.stream("POST", address, json=body, timeout=600, trust_env=False) as reply:
            for line in servers.lines(reply):
                parts = json.loads(line[6:])["choices"] if line.startswith("data: {") else []
                if parts and parts[0]["delta"].get("content"):
                    return time.perf_counter() - began
    raise RuntimeError("vLLM's stream ended without output")


def _script(text: str, asked: str) -> Callable[[Path], float]:
    """Seconds from starting a Python process with this text to its output."""

    def run(folder: Path) -> float:
        command = [sys.executable, "-c", text, str(folder), str(servers.threads()), asked]
        began = time.perf_counter()
        with subprocess.Popen(
            command,
            env=servers.with_bytecode({"HF_HUB_OFFLINE": "1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None, "it was started with a pipe"
            said = process.stdout.readline()
            taken = time.perf_counter() - began
            _, errors = process.communicate()
        if said != "done\n":
            raise RuntimeError(f"the stock process failed: {errors[-2000:]}")
        return taken

    return run


LANGUAGE: Final = Case(
    "vllm",
    "appliance/smollm2-135m-instruct",
    {"prompt": _QUESTION, "temperature": 0, "max_tokens": 8},
    _vllm_server,
    "vLLM's own server",
)
CASES: Final = (
    LANGUAGE,
    Case(
        "diffusers",
        "appliance/tiny-shapes",
        {"prompt": _PICTURE, "seed": 1},
        _script(DIFFUSERS, _PICTURE),
        "a Python process with diffusers",
    ),
    Case(
        "embeddings",
        "appliance/all-minilm-l6-v2",
        {"text": _TEXT},
        _script(EMBEDDINGS, _TEXT),
        "a Python process with transformers",
    ),
)
