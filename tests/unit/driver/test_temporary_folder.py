"""Other users can neither read temporary files nor plant any."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from appliance.domain.errors import ApplianceError
from appliance.driver import temporary_folder


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that everybody may write, as /tmp is."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_only_this_user_may_enter_the_folder(shared: Path) -> None:
    made = temporary_folder.make(Path("/data/one"))
    assert made.parent == shared
    assert made.stat().st_mode & 0o777 == 0o700
    assert temporary_folder.make(Path("/data/two")) != made


def test_a_folder_of_an_earlier_run_is_closed_and_emptied(shared: Path, tmp_path: Path) -> None:
    made = temporary_folder.make(Path("/data/one"))
    made.chmod(0o777)  # as Ray did
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "kept").touch()
    (made / "logs").symlink_to(elsewhere)
    (made / "session" / "sockets").mkdir(parents=True)
    assert temporary_folder.make(Path("/data/one")) == made
    assert made.stat().st_mode & 0o777 == 0o700
    assert list(made.iterdir()) == []
    assert (elsewhere / "kept").exists()
    assert elsewhere.stat().st_mode & 0o777 == 0o700


def test_a_planted_link_is_refused(shared: Path, tmp_path: Path) -> None:
    made = temporary_folder.make(Path("/data/one"))
    made.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o750)
    (elsewhere / "kept").touch()
    made.symlink_to(elsewhere)
    with pytest.raises(ApplianceError, match=f"{made} is not a folder of the user"):
        temporary_folder.make(Path("/data/one"))
    assert (elsewhere / "kept").exists()
    assert elsewhere.stat().st_mode & 0o777 == 0o750


def test_a_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = temporary_folder.make(Path("/data/one"))
    (made / "kept").touch()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    made.rename(made.with_name(made.name.replace(f"-{owner}-", f"-{owner + 1}-")))
    with pytest.raises(ApplianceError, match="is not a folder of the user"):
        temporary_folder.make(Path("/data/one"))


def test_a_folder_that_cannot_be_created_is_reported(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared / "none"))
    with pytest.raises(ApplianceError, match="No such file or directory: set TMPDIR to another"):
        temporary_folder.make(Path("/data/one"))


def test_child_processes_use_the_folder(shared: Path) -> None:
    made = temporary_folder.make(Path("/data/one"))
    temporary_folder.use(made)
    assert Path(tempfile.mkdtemp()).parent == made
    assert os.environ["TMPDIR"] == str(made)
