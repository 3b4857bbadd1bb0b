"""Shows what the machines of a failed test have printed."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.support import cluster

_MACHINES = 4  # the last ones, which are those of the failed test
_LINES = 40  # lines of each machine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for machine in cluster.CREATED[-_MACHINES:]:
            text = machine.output.read_text(errors="replace") if machine.output.exists() else ""
            report.sections.append((f"output of {machine.home}", "\n".join(text.splitlines()[-_LINES:])))
    return report
