"""More models than memory, and many clients: everything is answered, and memory is never promised twice.

What is held against the appliance is its own log of decisions, which a thread collects while it grows.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from statistics import median
from typing import Any

import httpx
import psutil
import pytest

from appliance.scheduler import MIN_RESIDENCY
from tests.support.appliance_process import Appliance, wait_for

pytestmark = pytest.mark.integration

MIB = 1024**2
CAPACITY = {"left": 220 * MIB, "right": 110 * MIB}
MODELS = [f"test/m{number}" for number in range(10)]  # three of them fit
DUEL = ("test/one", "test/two")  # one of them fits, on the left
CONFIG = f"""
hardware:
  devices:
    - {{name: left, memory: {CAPACITY["left"]}}}
    - {{name: right, memory: {CAPACITY["right"]}}}
limits:
  attempts: 10
models:
""" + "\n".join(
    [
        *(f"  - {{name: {name}, kind: echo, memory: 100MiB}}" for name in MODELS),
        *(f"  - {{name: {name}, kind: echo, memory: 200MiB}}" for name in DUEL),
    ]
)


class Decisions:
    """Everything that was decided from now on, each once and without a gap."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._over = threading.Event()
        self._last = self._read()[0]["number"] if self._read() else 0
        self.made: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._collect)

    def __enter__(self) -> Decisions:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._take()

    def _read(self) -> list[dict[str, Any]]:
        with self._appliance.client() as client:
            decisions: list[dict[str, Any]] = client.get("/admin/residency").json()["decisions"]
        return decisions

    def _collect(self) -> None:
        while not self._over.wait(1.0):
            self._take()

    def _take(self) -> None:
        new = [each for each in reversed(self._read()) if each["number"] > self._last]
        assert [each["number"] for each in new] == list(range(self._last + 1, self._last + 1 + len(new)))
        self._last += len(new)
        self.made += new


def check_capacity(decisions: list[dict[str, Any]]) -> None:
    """No device is ever promised more than it has; ``decisions`` begin with nothing loaded."""
    held: dict[str, dict[str, int]] = {device: {} for device in CAPACITY}
    for each in decisions:
        for device in each["devices"]:
            match each["what"]:
                case "load" | "resized":
                    held[device][each["model"]] = each["memory"]
                case "unloaded" | "lost" | "failed":
                    held[device].pop(each["model"], None)
            assert sum(held[device].values()) <= CAPACITY[device], each["text"]


def create(client: httpx.Client, model: str, **input: Any) -> str:
    reply = client.post(f"/v1/models/{model}/predictions", json={"input": input})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        with contextlib.suppress(httpx.TransportError):  # the gateway is being replaced
            record: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
            return record if record.get("completed_at") else None
        return None

    found: dict[str, Any] = wait_for(over, f"the end of {id}")
    return found


def waited(record: dict[str, Any]) -> float:
    """Seconds until it began."""
    began, made = (datetime.fromisoformat(record[key]) for key in ("started_at", "created_at"))
    return (began - made).total_seconds()


@pytest.fixture(autouse=True)
def empty(client: httpx.Client) -> None:
    """Nothing is loaded when a test begins."""
    for name in (*MODELS, *DUEL):
        client.post(f"/admin/models/{name}/unload")
    wait_for(lambda: not any(held(client).values()), "everything to be unloaded")


def held(client: httpx.Client) -> dict[str, dict[str, int]]:
    devices = client.get("/admin/residency").json()["devices"]
    return {device["name"]: device["reserved"] for device in devices}


def test_ten_models_twenty_clients_and_room_for_three(appliance: Appliance, client: httpx.Client) -> None:
    def ask(number: int) -> list[dict[str, Any]]:
        rng = random.Random(number)
        with appliance.client() as own:
            ids = [create(own, rng.choice(MODELS), text=f"{number} {at}") for at in range(25)]
            return [ended(own, id) for id in ids]

    with Decisions(appliance) as decisions, ThreadPoolExecutor(20) as pool:
        records = [record for some in pool.map(ask, range(20)) for record in some]
    assert [record["status"] for record in records] == ["succeeded"] * 500
    assert all(record["output"] == record["input"]["text"] for record in records)
    check_capacity(decisions.made)
    waits = defaultdict(list)
    for record in records:
        waits[record["model"]].append(waited(record))
    for name, seconds in sorted(waits.items()):
        print(f"{name}: {len(seconds)} waited {median(seconds):.1f} s (median), {max(seconds):.1f} s at most")


def test_two_models_that_do_not_fit_together_alternate(appliance: Appliance, client: httpx.Client) -> None:
    def ask(name: str) -> int:
        with appliance.client() as own:
            return sum(ended(own, create(own, name))["status"] == "succeeded" for _ in range(4))

    with Decisions(appliance) as decisions:
        for _ in range(3):  # each client asks as soon as the other one's model has come
            with ThreadPoolExecutor(2) as pool:
                assert list(pool.map(ask, DUEL)) == [4, 4], "both make progress"
    check_capacity(decisions.made)
    swaps: list[float] = []
    ready: dict[str, tuple[float, float]] = {}
    began: dict[str, float] = {}
    for each in decisions.made:
        at = datetime.fromisoformat(each["at"]).timestamp()
        if each["what"] == "ready":
            ready[each["model"]] = at, each["seconds"]
            if each["model"] in began:
                swaps.append(at - began.pop(each["model"]))
        elif each["what"] == "unload":
            since, took = ready[each["model"]]
            assert at - since >= max(MIN_RESIDENCY, took) - 0.01, "the bound on thrash"
            began[each["for"]] = at
    assert len(swaps) >= 3
    print(f"{len(swaps)} swaps, from the first unload to ready: {median(swaps):.2f} s (median)")


def test_kills_of_everything_during_loads_and_evictions(appliance: Appliance, client: httpx.Client) -> None:
    """Host, zygote, replica, Serve's controller and the gateway, each while models come and go."""
    victims = (
        "hosts",
        "appliance.worker.zygote",
        "ServeReplica:runner-",
        "ServeController",
        "ServeReplica:gateway",
    )
    assert ended(client, create(client, MODELS[0]))["status"] == "succeeded"
    ids: list[str] = []
    rng = random.Random(5)
    for victim in victims:
        wait_for(appliance.answers, "the gateway")
        with appliance.client() as own:
            ids += [create(own, rng.choice(MODELS), text="kept", delay=0.2) for _ in range(12)]
        for process in found(appliance, victim):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    wait_for(appliance.answers, "the gateway")
    with appliance.client() as own:
        assert {ended(own, id)["status"] for id in ids} == {"succeeded"}
        wait_for(lambda: appliance.named("ServeController"), "another controller")
        wait_for(lambda: settled(appliance, own), "hosts and reservations to agree")
        assert ended(own, create(own, "test/one", text="still here"))["output"] == "still here"


def found(appliance: Appliance, victim: str) -> list[psutil.Process]:
    if victim != "hosts":
        return [process for process in appliance.named(victim) if process.pid not in appliance.worker_pids()]
    workers = appliance.worker_pids()
    return [process for process in appliance.processes() if process.pid in workers]


def settled(appliance: Appliance, client: httpx.Client) -> bool:
    """Whether as many workers run as models hold memory, and nothing is promised twice."""
    reserved = held(client)
    fits = all(sum(reserved[name].values()) <= size for name, size in CAPACITY.items())
    workers = [pid for pid in appliance.worker_pids() if psutil.pid_exists(pid)]
    return fits and len(workers) == sum(map(len, reserved.values()))
