"""Time from asking for a model that is not loaded to its first token."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import servers
from tests.running import Appliance, wait_for

MODEL: Final = "appliance/smollm2-135m-instruct"
ROUNDS: Final = 3
TARGET: Final = 1 / 5
_PROMPT: Final = {"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 8}


def measure(console: Console) -> dict[str, Any]:
    """Both servers on the same weights, in turn."""
    folder = servers.default_weights()
    ours: list[float] = []
    stock: list[float] = []
    first = 0.0
    for number in range(ROUNDS):
        console.print(f"round {number + 1} of {ROUNDS}: vLLM's own server", style="dim")
        stock.append(_stock(folder))
        console.print(f"round {number + 1} of {ROUNDS}: appliance", style="dim")
        began = time.perf_counter()
        with servers.appliance(shipped=True) as running:
            if number == 0:
                first_token(running)
                first = time.perf_counter() - began
            else:
                first_token(running)
            _unload(running)
            ours.append(first_token(running))
    ratio = statistics.median(ours) / statistics.median(stock)
    whole = first / statistics.median(stock)
    table = Table("start", "seconds to the first token", "of vLLM's server", title="cold start")
    table.add_row("vLLM's own server, from its process", f"{statistics.median(stock):.1f}", "1")
    table.add_row("running appliance, model not loaded", f"{statistics.median(ours):.1f}", f"{ratio:.3f}")
    table.add_row("appliance serve, from its process", f"{first:.1f}", f"{whole:.3f}")
    console.print(table)
    console.print(f"target: at most {TARGET:.2f}: {'met' if ratio <= TARGET else 'missed'}")
    return {
        "appliance": ours,
        "vllm": stock,
        "appliance_from_process": first,
        "ratio": ratio,
        "ratio_from_process": whole,
        "target": TARGET,
    }


def first_token(running: Appliance) -> float:
    """Seconds from the request to the first token."""
    began = time.perf_counter()
    with running.client() as client:
        created = client.post(f"/v1/models/{MODEL}/predictions", json={"input": _PROMPT})
        created.raise_for_status()
        with httpx.stream("GET", created.json()["urls"]["stream"], timeout=600, trust_env=False) as reply:
            for line in reply.iter_lines():
                if line == "event: output":
                    return time.perf_counter() - began
    raise RuntimeError("the appliance's stream ended without output")


def _unload(running: Appliance) -> None:
    with running.client() as client:
        client.post(f"/admin/models/{MODEL}/unload").raise_for_status()

        def cold() -> bool:
            models = client.get("/admin/status").json()["models"]
            return any(model["name"] == MODEL and model["state"] == "cold" for model in models)

        wait_for(cold, 60, "the model to be unloaded")


def _stock(folder: Any) -> float:
    """Seconds from starting vLLM's server to its first token."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": _PROMPT["prompt"]}],
        "temperature": 0,
        "max_tokens": 8,
        "stream": True,
    }
    began = time.perf_counter()
    with servers.vllm_starting(folder, servers.BENCH / "vllm.log") as stock:
        servers.wait_until_healthy(stock.url, "/health", stock.pid)
        address = f"{stock.url}/v1/chat/completions"
        with httpx.stream("POST", address, json=body, timeout=600, trust_env=False) as reply:
            for line in reply.iter_lines():
                parts = json.loads(line[6:])["choices"] if line.startswith("data: {") else []
                if parts and parts[0]["delta"].get("content"):
                    return time.perf_counter() - began
    raise RuntimeError("vLLM's stream ended without output")
