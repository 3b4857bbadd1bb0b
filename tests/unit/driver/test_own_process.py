"""What drivers do with their own process."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from appliance.domain.errors import ApplianceError
from appliance.driver import own_process


def test_shared_memory_that_cannot_be_written(tmp_path: Path) -> None:
    own_process.check_shared_memory(tmp_path)
    with pytest.raises(ApplianceError, match=r"shared memory at .* cannot be written: No such file"):
        own_process.check_shared_memory(tmp_path / "none")


class Replaced(Exception):
    """The driver has replaced itself by a new one."""


class FullDisk(io.StringIO):
    """An output that cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> NoReturn:
        raise self.error

    def flush(self) -> NoReturn:
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError()])
def test_a_driver_continues_without_its_output(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    own_process.DriverConsole(file=FullDisk(error)).print("node one has joined")

    def replace(_: object, command: list[str], environment: dict[str, str]) -> NoReturn:
        assert command == [*sys.orig_argv, "--port", "8000"]
        assert environment == {"NAME": "value"}
        raise Replaced

    monkeypatch.setattr(os, "execve", replace)
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.stdout", FullDisk(error))
    with pytest.raises(Replaced):
        own_process.restart({"NAME": "value"}, ["--port", "8000"])
