"""Each obstacle to a start is reported in one sentence, before any process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain.errors import ApplianceError
from appliance.driver import main


def serve(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["driver", *arguments])
    return main.main()


def test_a_data_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  - {name: test/echo, kind: echo}\n")
    home = tmp_path / "home"
    home.touch()
    assert serve(["--config", str(config), "--home", str(home)], monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"appliance: the data folder {home} cannot be used: {home}: File exists; change its owner to"
    )
    assert "--home or APPLIANCE_HOME" in said


def test_shared_memory_that_cannot_be_written(tmp_path: Path) -> None:
    main.check_shared_memory(tmp_path)
    with pytest.raises(ApplianceError, match=r"shared memory at .* cannot be written: No such file"):
        main.check_shared_memory(tmp_path / "none")
