"""Two language models on one GPU: each on a share of it, then in turns, asleep while the other computes.

Needs a GPU with at least 16 GiB. Not run so far.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from appliance import machine
from appliance.config import HardwareConfig
from scripts.benchmarks.servers import START_TIMEOUT
from tests.support.appliance_process import ROOT, Appliance, link_weights

ROUNDS: Final = 5
MODELS: Final = ("bench/first", "bench/second")


def measure(console: Console) -> dict[str, Any]:
    """Both at 0.4 of the card at once; then both at 0.7, which do not fit together."""
    if not any(device.kind == "cuda" for device in machine.discover(HardwareConfig())):
        console.print("there is no GPU here: nothing is measured")
        return {"measured": False}
    together = _together(console)
    return {"measured": True, "together": together, "in_turns": _in_turns(console)}


def _together(console: Console) -> dict[str, Any]:
    with _running(0.4) as running, running.client() as client:
        for name in MODELS:
            _says(client, name)
        held = client.get("/admin/residency").json()
    console.print(f"both are ready on one card: {held['devices']}")
    return {"devices": held["devices"], "models": held["models"]}


def _in_turns(console: Console) -> dict[str, Any]:
    with _running(0.7) as running, running.client() as client:
        seconds = [_says(client, name) for _ in range(ROUNDS) for name in MODELS]
        decisions = client.get("/admin/residency").json()["decisions"]
    table = Table("what", "how often", "median s")
    found: dict[str, Any] = {"first_answers": seconds}
    for what in ("ready", "asleep", "woken", "unloaded"):
        took = [each["seconds"] for each in decisions if each["what"] == what]
        found[what] = took
        table.add_row(what, str(len(took)), f"{median(took):.2f}" if took else "")
    console.print(table)
    return found


@contextmanager
def _running(share: float) -> Iterator[Appliance]:
    """An appliance with the default language model under both names, each with this share of a GPU."""
    shipped = yaml.safe_load((ROOT / "models.yaml").read_text())["models"]
    source = next(model["source"] for model in shipped if model["kind"] == "vllm")
    models = [{"name": name, "kind": "vllm", "source": source, "gpu": share} for name in MODELS]
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
        home = Path(folder)
        link_weights(home)
        config = home / "models.yaml"
        config.write_text(yaml.safe_dump({"models": models}))
        running = Appliance(home, config)
        running.start(START_TIMEOUT)
        try:
            yield running
        finally:
            running.stop()


def _says(client: httpx.Client, model: str) -> float:
    """Seconds until the model has answered with one token, its coming included."""
    began = time.perf_counter()
    body = {"input": {"prompt": "Hello", "max_tokens": 1}}
    made = client.post(f"/v1/models/{model}/predictions", json=body)
    made.raise_for_status()
    id = made.json()["id"]
    while not (record := client.get(f"/v1/predictions/{id}").json())["completed_at"]:
        time.sleep(0.02)
    if record["status"] != "succeeded":
        raise RuntimeError(f"{model} did not answer: {record['error']}")
    return round(time.perf_counter() - began, 3)
