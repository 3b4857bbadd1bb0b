"""`appliance users`: passwords come from standard input, and are never shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from appliance.cli import main

CONFIG = "models:\n  - {name: test/echo, kind: echo}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))
    (tmp_path / "models.yaml").write_text(CONFIG)
    return tmp_path / "home"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: str = "") -> int:
    monkeypatch.setattr("sys.argv", ["appliance", *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_user_is_added_listed_and_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    password = "correct horse"
    assert run(monkeypatch, "users", "add", "anna", "--scope", "admin", stdin=f"{password}\n") == 0
    assert run(monkeypatch, "users", "add", "anna", stdin=f"{password}\n") == 1
    assert "there is a user anna already" in capsys.readouterr().err
    assert run(monkeypatch, "users", "list", "--json") == 0
    (user,) = json.loads(capsys.readouterr().out)
    assert (user["name"], user["signs_in_with"], user["scope"]) == ("anna", "password", "admin")
    assert run(monkeypatch, "users", "password", "anna", stdin="another horse\n") == 0
    assert run(monkeypatch, "users", "list") == 0
    assert "anna  password admin  last sign-in: never" in capsys.readouterr().out
    assert run(monkeypatch, "token", "create", "laptop", "--owner", "anna") == 0
    capsys.readouterr()
    assert run(monkeypatch, "users", "remove", "anna") == 0
    assert "of the account anna is still valid: `appliance token revoke " in capsys.readouterr().out
    assert run(monkeypatch, "users", "remove", "anna") == 1
    assert run(monkeypatch, "audit", "list", "--action", "user", "--json") == 0
    printed = capsys.readouterr().out
    assert [each["action"] for each in json.loads(printed)] == ["user.remove", "user.password", "user.add"]
    files = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    assert b"correct horse" not in files + printed.encode()
    assert b"another horse" not in files


@pytest.mark.parametrize(
    ("arguments", "stdin", "reason"),
    [
        (("add", "Anna"), "correct horse", "'Anna' is no username"),
        (("add", "anna"), "short", "must have 12 to 1000 characters"),
        (("add", "anna"), "", "must have 12 to 1000 characters"),
        (("password", "anna"), "correct horse", "there is no user anna with a password"),
    ],
)
def test_mistakes_are_explained(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    stdin: str,
    reason: str,
) -> None:
    assert run(monkeypatch, "users", *arguments, stdin=stdin) == 1
    assert reason in capsys.readouterr().err
