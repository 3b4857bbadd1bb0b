"""Models that do not fit together, on logical devices: real placements, loads and evictions."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.appliance_process import Appliance, wait_for

pytestmark = pytest.mark.integration

CONFIG = """
hardware:
  devices:
    - {name: left, memory: 100MiB}
    - {name: right, memory: 100MiB}
models:
  - {name: test/pinned, kind: echo, memory: 100MiB, pin: true}  # all others share one device
  - {name: test/first, kind: echo, gpu: 0.8}
  - {name: test/second, kind: echo, memory: 80MiB}
  - {name: test/brief, kind: echo, memory: 1MiB, idle_unload_after: 1s}
  - {name: test/small, kind: echo, memory: 1MiB}
  - {name: test/estimated, kind: echo}
  - {name: test/slow, kind: echo, memory: 1MiB, options: {startup_delay: 2s}}
"""


def said(client: httpx.Client, model: str, text: str) -> str:
    body = {"input": {"text": text}}
    reply = client.post(f"/v1/models/{model}/predictions", json=body, headers={"Prefer": "wait"})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["output"])


def model(client: httpx.Client, name: str) -> dict[str, Any]:
    models = client.get("/admin/status").json()["models"]
    return next(found for found in models if found["name"] == name)


def test_a_pinned_model_is_loaded_at_start(client: httpx.Client) -> None:
    wait_for(lambda: model(client, "test/pinned")["state"] == "ready", "the pinned model")


def test_two_models_that_need_one_place_take_turns(client: httpx.Client) -> None:
    (kept,) = model(client, "test/pinned")["devices"]
    for round_ in range(2):
        for name in ("test/first", "test/second"):
            assert said(client, name, f"{name} {round_}") == f"{name} {round_}"
            assert model(client, name)["devices"] == [{"left": "right", "right": "left"}[kept]]
    assert model(client, "test/first")["state"] == "cold"
    assert model(client, "test/pinned")["state"] == "ready"


def test_what_is_idle_is_unloaded(client: httpx.Client) -> None:
    assert said(client, "test/brief", "hello") == "hello"
    wait_for(lambda: model(client, "test/brief")["state"] == "cold", "the idle model to be unloaded")


def test_all_who_wait_for_a_model_share_one_load(appliance: Appliance, client: httpx.Client) -> None:
    with ThreadPoolExecutor(5) as pool:
        texts = list(pool.map(lambda text: said(client, "test/slow", text), "abcde"))
    assert texts == list("abcde")
    log = (appliance.home / "logs" / "appliance.log").read_text()
    assert log.count("loading model test/slow on") == 1


def of(client: httpx.Client, name: str) -> dict[str, Any]:
    models = client.get("/admin/residency").json()["models"]
    return dict(next(found["memory"] for found in models if found["name"] == name))


def eats(client: httpx.Client, name: str) -> dict[str, Any]:
    """A prediction that takes 400 MiB, which no device here has."""
    body = {"input": {"memory": 400, "delay": 1000}}
    return dict(client.post(f"/v1/models/{name}/predictions", json=body).json())


def ended(client: httpx.Client, prediction: dict[str, Any]) -> dict[str, Any]:
    def record() -> dict[str, Any]:
        return dict(client.get(f"/v1/predictions/{prediction['id']}").json())

    wait_for(lambda: record().get("completed_at"), "its end")
    return record()


def test_a_model_that_takes_more_than_it_has_is_ended_and_the_others_go_on(
    appliance: Appliance, client: httpx.Client
) -> None:
    declared, estimated = eats(client, "test/small"), eats(client, "test/estimated")
    assert said(client, "test/slow", "still here") == "still here"
    failed = ended(client, declared)
    assert failed["status"] == "failed"
    assert failed["error"].startswith("Out of memory: the worker process of test/small used ")
    advice = "with a limit of 1.0 MiB, and was killed; raise memory of test/small in models.yaml"
    assert advice in failed["error"]
    assert (of(client, "test/small")["bytes"], of(client, "test/small")["out_of_memory"]) == (1 << 20, 1)
    failed = ended(client, estimated)
    assert failed["status"] == "failed"
    assert "this machine has no more memory for it" in failed["error"]
    known = of(client, "test/estimated")
    assert (known["estimate"], known["bytes"], known["out_of_memory"]) == (64 << 20, 100 << 20, 1)
    assert known["from"] == "measured"
    assert said(client, "test/small", "again") == "again"
    log = (appliance.home / "logs" / "appliance.log").read_text()
    assert "out of memory: the worker process of test/estimated " in log


CYCLES = 50


def resident(appliance: Appliance) -> dict[int, int]:
    """Bytes of main memory of every process that runs; those of files, which come and go, are left out."""
    found = {}
    for process in appliance.processes():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            rollup = (Path("/proc") / str(process.pid) / "smaps_rollup").read_text()
            sizes = dict(line.split()[:2] for line in rollup.splitlines()[1:])
            found[process.pid] = (int(sizes["Pss_Anon:"]) + int(sizes["Pss_Shmem:"])) * 1024
    return found


def settled(appliance: Appliance) -> dict[int, int]:
    """``resident`` once no process comes, goes or grows: one that is on its way grows while it imports."""
    found = [resident(appliance)]

    def calm() -> bool:
        time.sleep(2)
        found.append(resident(appliance))
        last = found[-3:]
        same = all(one.keys() == last[0].keys() for one in last)
        return len(last) == 3 and same and abs(sum(last[0].values()) - sum(last[-1].values())) < 4 << 20

    wait_for(calm, "memory that stays the same")
    return found[-1]


def test_memory_is_as_before_after_many_loads_and_unloads(appliance: Appliance, client: httpx.Client) -> None:
    """That of every process that was there all the time; and there are not more of them.

    One runner replica or two may be spare, and another one on its way.
    """

    def cycle() -> None:
        assert client.post("/admin/models/test/small/load").json()["state"] == "ready"
        assert client.post("/admin/models/test/small/unload").status_code == 202
        wait_for(lambda: model(client, "test/small")["state"] == "cold", "the unload")

    for _ in range(5):  # what is loaded at its first use, or kept for reuse
        cycle()
    earlier = settled(appliance)
    for _ in range(CYCLES):
        cycle()
    wait_for(lambda: len(appliance.processes()) <= len(earlier) + 2, "what is not needed to end")
    later = settled(appliance)
    staying = earlier.keys() & later.keys()
    before, after = (sum(found[pid] for pid in staying) for found in (earlier, later))
    print(f"{len(staying)} processes, {before / 2**20:.0f} MiB, {after / 2**20:.0f} after {CYCLES} cycles")
    assert len(staying) > len(earlier) / 2
    assert after < 1.05 * before
