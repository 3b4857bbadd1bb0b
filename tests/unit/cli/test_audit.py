"""`appliance audit`: commands are recorded, and records that were changed are found."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.store.audit_chain import head_file

CONFIG = "models:\n  - {name: test/echo, kind: echo}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))
    (tmp_path / "models.yaml").write_text(CONFIG)
    return tmp_path / "home"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["appliance", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_commands_are_recorded_listed_and_exported(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "token", "create", "laptop") == 0
    secret = capsys.readouterr().out.strip()
    assert run(monkeypatch, "audit", "list", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["action"], record["after"]["name"]) == ("token.create", "laptop")
    assert record["owner"].startswith("unix:")
    assert run(monkeypatch, "token", "revoke", record["object"]) == 0
    assert run(monkeypatch, "audit", "export", "audit.jsonl") == 0
    text = Path("audit.jsonl").read_text()
    assert [json.loads(line)["action"] for line in text.splitlines()] == ["token.create", "token.revoke"]
    assert secret not in text
    assert run(monkeypatch, "audit", "export", "audit.jsonl") == 1
    capsys.readouterr()
    assert run(monkeypatch, "audit", "list", "--action", "token", "--limit", "1") == 0
    assert "token.revoke" in capsys.readouterr().out


def test_a_new_token_is_recorded_with_its_limits(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ("--expires", "12h", "--network", "10.0.0.0/8", "--model", "me/*")
    assert run(monkeypatch, "token", "create", "laptop", *limits) == 0
    capsys.readouterr()
    assert run(monkeypatch, "audit", "list", "--json") == 0
    after = json.loads(capsys.readouterr().out)[0]["after"]
    assert (after["networks"], after["models"]) == (["10.0.0.0/8"], ["me/*"])
    assert after["expires_at"].startswith("20")


def test_verify_names_the_first_bad_record(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        assert run(monkeypatch, "token", "create", name) == 0
    capsys.readouterr()
    assert run(monkeypatch, "audit", "verify") == 0
    assert capsys.readouterr().out.startswith("records 1 to 3 are intact")
    connection = sqlite3.connect(home / "appliance.db", isolation_level=None)
    connection.execute("DROP TRIGGER audit_is_not_changed")
    connection.execute("UPDATE audit SET body = replace(body, 'two', 'six') WHERE number = 2")
    connection.close()
    assert run(monkeypatch, "audit", "verify") == 1
    assert "record 2 was changed" in capsys.readouterr().err


def test_a_restored_log_continues(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "token", "create", "one") == 0
    assert run(monkeypatch, "backup", "backup.tar.gz") == 0
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "other"))
    assert run(monkeypatch, "restore", "backup.tar.gz") == 0
    assert head_file(tmp_path / "other" / "appliance.db").exists()
    assert run(monkeypatch, "audit", "verify") == 0
    capsys.readouterr()
    assert run(monkeypatch, "audit", "list", "--json") == 0
    actions = [record["action"] for record in json.loads(capsys.readouterr().out)]
    assert actions == ["backup.restore", "token.create"]


def test_restore_to_a_named_folder_does_not_read_the_config(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "token", "create", "one") == 0
    assert run(monkeypatch, "backup", "backup.tar.gz") == 0
    (tmp_path / "models.yaml").write_text("models: [")
    assert run(monkeypatch, "restore", "backup.tar.gz", "--home", "other") == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "other" / "appliance.db")) as connection:
        assert connection.execute("SELECT action FROM audit ORDER BY number").fetchall() == [
            ("token.create",),
            ("backup.restore",),
        ]


def test_a_backup_is_good_if_it_cannot_be_recorded(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "token", "create", "one") == 0
    with contextlib.closing(sqlite3.connect(home / "appliance.db", isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no space'); END"
        )
    for arguments in (("backup", "backup.tar.gz"), ("restore", "backup.tar.gz", "--home", "other")):
        capsys.readouterr()
        assert run(monkeypatch, *arguments) == 0, arguments
        printed = capsys.readouterr()
        assert "not recorded in the audit log: " in printed.err
        assert "files" in printed.out


def test_a_file_name_that_is_not_utf_8_is_recorded(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "token", "create", "one") == 0
    assert run(monkeypatch, "audit", "export", os.fsdecode(b"\xff.jsonl")) == 0
    capsys.readouterr()
    assert run(monkeypatch, "audit", "list", "--json", "--limit", "1") == 0
    assert json.loads(capsys.readouterr().out)[0]["object"] == "\\udcff.jsonl"
