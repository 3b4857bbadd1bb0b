"""What drivers do with their own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain.errors import ApplianceError
from appliance.driver import own_process


def test_shared_memory_that_cannot_be_written(tmp_path: Path) -> None:
    own_process.check_shared_memory(tmp_path)
    with pytest.raises(ApplianceError, match=r"shared memory at .* cannot be written: No such file"):
        own_process.check_shared_memory(tmp_path / "none")
