"""Commands of an appliance whose database is on PostgreSQL: what they refuse, without asking the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.config import load
from appliance.config.redact import redact
from appliance.driver import doctor
from appliance.store import encryption
from tests.unit.cli.test_audit import home, run

__all__ = ["home"]

CONFIG = """
store: {url: "postgresql://anna:secret@127.0.0.1:1/appliance"}
models:
  - {name: test/echo, kind: echo}
"""


@pytest.fixture(autouse=True)
def configured(home: Path) -> None:
    (home.parent / "models.yaml").write_text(CONFIG)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).split())


def test_a_backup_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "backup", "backup.tar.gz") == 1
    assert "save the database with pg_dump" in printed(capsys)
    assert not Path("backup.tar.gz").exists()


def test_the_database_is_not_encrypted_but_files_are(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "encryption", "status") == 0
    assert "does not encrypt the database on PostgreSQL; new files are not encrypted" in printed(capsys)
    monkeypatch.setenv(encryption.VARIABLE, "00" * 32)
    assert run(monkeypatch, "encryption", "enable") == 1
    assert "encrypt the disk of the server; new files are encrypted" in printed(capsys)
    key = encryption.files_key(home / "appliance.db")
    assert key is not None
    assert encryption.files_key(home / "appliance.db") == key
    assert run(monkeypatch, "encryption", "status") == 0
    assert "new files are encrypted with the key" in printed(capsys)
    assert run(monkeypatch, "encryption", "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["encrypted"] is False


def test_a_server_that_does_not_answer_is_named_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "token", "list") == 1
    shown = printed(capsys)
    assert "postgresql://anna@127.0.0.1:1/appliance: cannot connect to the database" in shown
    assert "secret" not in shown


def test_doctor_names_it_too(home: Path) -> None:
    (found,) = doctor.database(load(Path("models.yaml")), home)
    assert (found.subject, found.state) == ("database", "failed")
    assert "postgresql://anna@127.0.0.1:1/appliance" in found.found
    assert "store.url" in found.fix
    assert "secret" not in found.found


def test_a_url_of_another_database_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models.yaml").write_text(CONFIG.replace("postgresql:", "mysql:"))
    assert run(monkeypatch, "check") == 2
    shown = printed(capsys)
    assert "key store.url: 'mysql://**********@127.0.0.1:1/appliance' should be a URL such as" in shown
    assert "secret" not in shown


def test_the_config_that_is_shown_has_no_password() -> None:
    url = "postgresql://anna:hidden@db/appliance?sslmode=verify-full&sslpassword=hidden&password=hidden"
    Path("models.yaml").write_text(CONFIG.replace("postgresql://anna:secret@127.0.0.1:1/appliance", url))
    shown = redact(load(Path("models.yaml")))["store"]["url"]
    assert "hidden" not in shown
    assert "db/appliance?sslmode=verify-full" in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anna:pa/geheim@127.0.0.1:1/db",
        "postgresql://anna:geheim?1@127.0.0.1:1/db",
        "postgresql://anna:p@geheim@127.0.0.1:1/db",
        "postgresql://anna:geheim[@127.0.0.1:1/db",
        "postgresql://anna:ge:h#geheim@127.0.0.1:1/db",
    ],
)
def test_a_password_with_special_characters_must_be_encoded(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    Path("models.yaml").write_text("models:\n  - {name: a/b, kind: echo}\nstore:\n  url: ${DATABASE_URL}\n")
    assert run(monkeypatch, "check") == 2
    shown = printed(capsys)
    assert "encoded, such as %40 for @ and %2F for /" in shown
    assert "geheim" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anna:p%40ss%2Fword@127.0.0.1:1/db?sslmode=disable&host=/run/postgresql",
        "postgres://a.example.org:5432,b.example.org/db?target_session_attrs=read-write",
        "postgresql://anna@[::1]:5432/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://",
    ],
)
def test_urls_of_libpq_are_accepted(url: str) -> None:
    Path("models.yaml").write_text(f"store:\n  url: '{url}'\nmodels:\n  - {{name: a/b, kind: echo}}\n")
    assert load(Path("models.yaml")).store.url == url
