"""Progress bars in logs."""

from __future__ import annotations

import pytest
from replicate.prediction import Prediction

from appliance.runners.progress import bar


@pytest.mark.parametrize(("done", "total", "share"), [(0, 3, 0), (1, 3, 0.33), (3, 3, 1), (7, 5, 1)])
def test_replicates_client_parses_it(done: int, total: int, share: float) -> None:
    found = Prediction.Progress.parse(f"first\n{bar(done, total)}\nlast\n")
    assert found is not None
    assert (found.percentage, found.current, found.total) == (share, done, total)
