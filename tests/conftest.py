"""How pytest distributes the tests over its worker processes."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """Runs the tests of a file in one process, and all of ``tests/e2e``, because they share one appliance."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)
