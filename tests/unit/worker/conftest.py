"""A replica whose worker processes are scripted."""

from __future__ import annotations

import pytest

from appliance.worker import replica as module
from appliance.worker.replica import Replica
from tests.support.scripted_worker import ScriptedWorker


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedWorker]:
    monkeypatch.setattr(module, "WorkerHandle", ScriptedWorker)
    monkeypatch.setattr(ScriptedWorker, "started", [], raising=False)
    return ScriptedWorker.started


@pytest.fixture
def replica(workers: list[ScriptedWorker]) -> Replica:
    return Replica("runner-0", "/nonexistent", "/nonexistent")
