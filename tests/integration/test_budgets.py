"""Budgets hold to the unit while 16 clients use them up and the gateway is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, Appliance, wait_for
from tests.support.usage_totals import all_predictions, is_quiet

pytestmark = pytest.mark.integration

PREDICTIONS, CONCURRENT, CLIENTS = 120, 5, 16
CONFIG = f"""
server: {{account: team}}
limits:
  attempts: 5
  budgets:
    - {{account: team, per: month, predictions: {PREDICTIONS}}}
    - {{model: test/echo, concurrent: {CONCURRENT}}}
models:
  - {{name: test/echo, kind: echo, options: {{concurrency: 4}}}}
"""
CREATE = "/v1/models/test/echo/predictions"


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG)
    running = Appliance(tmp_path / "home", config)
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.kill()


class Clients:
    """Threads that create predictions until the budget is spent."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self.accepted: list[str] = []
        self.full = 0  # responses that refused a prediction because too many were unfinished
        self._threads = [threading.Thread(target=self._create, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def have(self, number: int) -> bool:
        """Return whether ``number`` predictions were accepted."""
        return len(self.accepted) >= number

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _create(self, number: int) -> None:
        waits = {"Prefer": "wait"} if number % 2 else {}
        while True:
            body = {"input": {"text": "x", "delay": 0.02 * (number % 3)}}
            try:
                with self._appliance.client() as client:
                    while (reply := client.post(CREATE, json=body, headers=waits)).status_code != 429:
                        assert reply.status_code in {201, 202}, reply.text
                        self.accepted.append(reply.json()["id"])
            except httpx.HTTPError:  # the gateway was killed
                time.sleep(0.1)
                continue
            if "The budget is spent" in reply.text:
                return
            self.full += 1
            time.sleep(0.02)


def most_at_once(records: list[dict[str, Any]]) -> int:
    """Return the largest number of predictions that were unfinished at the same time."""
    changes = [(each["created_at"], 1) for each in records]
    changes += [(each["completed_at"], -1) for each in records]
    unfinished = most = 0
    for _, change in sorted(changes):
        unfinished += change
        most = max(most, unfinished)
    return most


def test_16_clients_and_kills_get_exactly_the_budget(appliance: Appliance) -> None:
    clients = Clients(appliance)
    for part in (PREDICTIONS // 8, PREDICTIONS // 4):
        wait_for(partial(clients.have, part), "a part of the budget")
        appliance.kill_gateway()
        wait_for(appliance.answers, "the next gateway")
    clients.join()
    with appliance.client() as client:
        wait_for(partial(is_quiet, client), "the end of all predictions")
        records = all_predictions(client)
        assert len(records) == PREDICTIONS
        assert {each["id"] for each in records} >= set(clients.accepted)
        assert most_at_once(records) <= CONCURRENT
        assert clients.full > 0
    appliance.kill_gateway()  # the next one reads from the database what is spent
    wait_for(appliance.answers, "the next gateway")
    with appliance.client() as client:
        refused = client.post(CREATE, json={"input": {"text": "x"}})
        assert refused.status_code == 429
        assert f"{PREDICTIONS} of {PREDICTIONS} predictions of this month" in refused.json()["detail"]
        assert len(all_predictions(client)) == PREDICTIONS
