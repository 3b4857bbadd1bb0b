"""`appliance users`: passwords come from standard input, and are never shown."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.domain.audit import AuditEvent
from appliance.domain.user import Session, User
from appliance.store import Store

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


def test_check_explains_the_groups_of_the_last_sign_in(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models.yaml").write_text(
        CONFIG
        + "server: {public_url: https://ai.example.org}\n"
        + "access: {groups: {vision: {members: [], models: [test/echo], may: [run]}}}\n"
        + "sign_on: {oidc: {issuer: https://id.example.org, client_id: x, groups_claim: groups,"
        + " groups: {/ml: vision}}}\n"
    )
    user = User(
        name="anna", created_at=0.0, issuer="https://id.example.org", subject="s", groups_claim=("/ml",)
    )
    session = Session(
        id="s", user="anna", digest="d", created_at=0.0, expires_at=1.0, address="a", browser="b"
    )

    async def sign_in() -> None:
        store = Store(home / "appliance.db")
        await store.open()
        await store.users.sign_in(user, session, lambda known: AuditEvent(action="session.sign_in"))
        await store.close()

    asyncio.run(sign_in())
    assert run(monkeypatch, "check", "--as", "anna", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"] == {"test/echo": ["vision"]}
    assert run(monkeypatch, "check", "--as", "ben", "--json") == 0
    assert json.loads(capsys.readouterr().out)["denied"] == ["test/echo"]
