"""The short form of scripts/campaign: nothing that was accepted is lost, whatever is killed or stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.faults.cases import SHORT
from tests.support.appliance_process import PATIENCE, ROOT

pytestmark = pytest.mark.integration


def test_nothing_is_lost_or_wrong(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "scripts.faults", "--short", "--json", str(report)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    cases = json.loads(report.read_text())["cases"]
    assert {case["case"] for case in cases} == SHORT
    for case in cases:
        assert case["accepted"] == case["ended"] > 0, case
        assert (case["wrong"], case["lost"], case["skipped"]) == (0, 0, None), case
        assert case["seconds"] is not None, case
