"""The output of worker processes, read from their log files."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.worker import model_logs
from appliance.worker.model_logs import LONGEST, TAIL, LogReader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    log = model_logs.log_file(tmp_path, "a/b")
    log.parent.mkdir()
    return log


def test_lines_are_read_once_and_only_when_they_are_complete(log: Path) -> None:
    log.write_text("one\ntwo\nthr")
    reader = LogReader(log)
    assert reader.read() == ["one", "two"]
    with log.open("a") as file:
        file.write("ee\n 10 %\r100 %\r\n")
    assert reader.read() == ["three", "100 %"]
    assert reader.read() == []


def test_half_a_line_at_the_begin_and_lines_that_are_too_long_are_left_out(log: Path) -> None:
    log.write_text("x" * TAIL + "\nlast\n" + "y" * (LONGEST + 1))
    reader = LogReader(log)
    assert reader.read() == ["last"]
    with log.open("a") as file:
        file.write("rest of the long line\nnext\n")
    assert reader.read() == ["next"]


def test_reading_goes_on_in_the_new_file_after_a_rotation(log: Path) -> None:
    log.write_text("old\nunfinished")
    reader = LogReader(log)
    assert reader.read() == ["old"]
    log.replace(log.with_name(f"{log.name}.1"))
    assert reader.read() == []
    log.write_text("new\n")
    assert reader.read() == ["new"]


def test_all_instances_and_versions_of_a_model_are_found_and_no_other_model(
    tmp_path: Path, log: Path
) -> None:
    for name in ("a/b", "a/b#2", f"a/b@{'0' * 64}", "a/bc", "aa/b"):
        model_logs.log_file(tmp_path, name).touch()
    assert model_logs.instances(tmp_path, "a/b") == ["a/b", "a/b#2", f"a/b@{'0' * 64}"]
    assert log.exists()
