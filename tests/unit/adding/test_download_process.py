"""The lines of a download process: several threads report their progress."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from appliance.adding.download_process import Line, show

MARK = "mark:"


def test_lines_of_several_threads_are_not_mixed(capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(4000):
            threads.submit(show, Line("downloading", number, 4000), MARK)
    lines = capfd.readouterr().out.removesuffix("\n").split("\n")
    read = [msgspec.json.decode(line.removeprefix(MARK), type=Line) for line in lines]
    assert sorted(line.done for line in read) == list(range(4000))
