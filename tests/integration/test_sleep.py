"""Models that fall asleep and are woken, through the whole appliance: echo models that hold memory."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import Appliance, wait_for

pytestmark = pytest.mark.integration

CONFIG = """
hardware:
  host_memory: 100MiB
  devices:
    - {name: left, memory: 400MiB}
models:
  - {name: test/first, kind: echo, memory: 300MiB, options: {weights: 16MiB}}
  - {name: test/second, kind: echo, memory: 300MiB, options: {weights: 16MiB}}
  - name: test/drowsy
    kind: echo
    memory: 90MiB
    idle_unload_after: 20s  # it falls asleep after half of it, if it was loaded in less than that
    options: {weights: 16MiB, sleep_delay: 3s}
  - {name: test/heavy, kind: echo, memory: 350MiB, options: {weights: 16MiB, residue: 8MiB}}
"""


def said(client: httpx.Client, model: str, text: str) -> str:
    body = {"input": {"text": text}}
    reply = client.post(f"/v1/models/{model}/predictions", json=body, headers={"Prefer": "wait"})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["output"])


def state(client: httpx.Client, name: str) -> str:
    models = client.get("/admin/status").json()["models"]
    return next(str(found["state"]) for found in models if found["name"] == name)


def becomes(client: httpx.Client, name: str, wanted: str) -> None:
    wait_for(lambda: state(client, name) == wanted, f"{name} to be {wanted}")


def decisions(client: httpx.Client, model: str, what: str) -> list[dict[str, Any]]:
    made = client.get("/admin/residency").json()["decisions"]
    return [each for each in made if each["model"] == model and each["what"] == what]


def device(client: httpx.Client, name: str = "left") -> dict[str, int]:
    devices = client.get("/admin/residency").json()["devices"]
    return next(dict(found["reserved"]) for found in devices if found["name"] == name)


def test_models_that_need_one_place_sleep_in_turn(appliance: Appliance, client: httpx.Client) -> None:
    for round_ in range(2):
        for name in ("test/first", "test/second"):
            assert said(client, name, f"{name} {round_}") == f"{name} {round_}"
    becomes(client, "test/first", "asleep")
    assert state(client, "test/second") == "ready"
    assert device(client)["test/first"] == 1024**2
    assert device(client)["test/second"] == 300 * 1024**2
    assert len(decisions(client, "test/first", "load")) == 1, "it was woken, not loaded again"
    (woken,) = decisions(client, "test/first", "woken")
    assert woken["seconds"] > 0
    assert len(appliance.worker_pids()) == 2


def test_a_killed_sleeper_is_noticed_and_loaded_again(appliance: Appliance, client: httpx.Client) -> None:
    assert said(client, "test/second", "last") == "last"
    becomes(client, "test/first", "asleep")
    asleep = [pid for pid in appliance.worker_pids() if model_of(appliance, pid) == "test/first"]
    assert len(asleep) == 1
    os.kill(asleep[0], signal.SIGKILL)
    becomes(client, "test/first", "cold")
    assert "test/first" not in device(client)
    assert said(client, "test/first", "again") == "again"


def test_a_sleeper_is_unloaded_on_demand(client: httpx.Client) -> None:
    assert said(client, "test/second", "now") == "now"
    becomes(client, "test/first", "asleep")
    assert client.post("/admin/models/test/first/unload").status_code < 300
    becomes(client, "test/first", "cold")
    assert "test/first" not in device(client) | device(client, "cpu")


def test_a_prediction_that_comes_while_its_model_falls_asleep_wakes_it(client: httpx.Client) -> None:
    assert said(client, "test/drowsy", "one") == "one"
    becomes(client, "test/drowsy", "falling asleep")
    assert said(client, "test/drowsy", "two") == "two"
    assert decisions(client, "test/drowsy", "woken")


def test_a_sleeper_outlives_the_gateway(appliance: Appliance, client: httpx.Client) -> None:
    assert said(client, "test/first", "awake") == "awake"
    assert said(client, "test/second", "awake") == "awake"
    becomes(client, "test/first", "asleep")
    workers = sorted(appliance.worker_pids())
    appliance.kill_gateway()
    wait_for(appliance.answers, "the next gateway")
    with appliance.client() as signed_in:
        assert state(signed_in, "test/first") == "asleep"
        assert said(signed_in, "test/first", "woken") == "woken"
    assert sorted(appliance.worker_pids()) == workers


def test_what_keeps_too_much_of_its_device_asleep_is_ended_and_never_sleeps_again(
    appliance: Appliance, client: httpx.Client
) -> None:
    assert said(client, "test/heavy", "one") == "one"
    assert said(client, "test/second", "one") == "one"  # needs the memory
    assert state(client, "test/heavy") == "cold"
    (lost,) = decisions(client, "test/heavy", "lost")
    assert "it still used 8.0 MiB of device memory, more than the allowed 1.0 MiB" in lost["why"]
    assert said(client, "test/heavy", "two") == "two"
    assert said(client, "test/second", "two") == "two"
    assert state(client, "test/heavy") == "cold"
    assert len(decisions(client, "test/heavy", "sleep")) == 1


def model_of(appliance: Appliance, pid: int) -> str:
    """What the host with this process id has loaded."""
    return str(json.loads((appliance.home / "run" / "hosts" / str(pid)).read_text())["model"])
