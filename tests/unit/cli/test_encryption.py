"""`appliance encryption`: an existing data folder is encrypted, and its key is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli import encryption as commands
from appliance.driver import home_lock
from appliance.store import encryption
from tests.unit.cli.test_audit import home, run

__all__ = ["home"]

KEY, OTHER = "00" * 32, "11" * 32


def test_a_data_folder_is_encrypted_and_its_key_is_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "token", "create", "laptop") == 0
    assert run(monkeypatch, "encryption", "status") == 0
    assert "is not encrypted" in capsys.readouterr().out
    assert run(monkeypatch, "encryption", "enable") == 1
    assert "there is no key: set APPLIANCE_ENCRYPTION_KEY" in capsys.readouterr().err

    monkeypatch.setenv(encryption.VARIABLE, KEY)
    assert run(monkeypatch, "token", "list") == 1
    assert "run `appliance encryption enable`" in capsys.readouterr().err
    with home_lock.take(home):
        assert run(monkeypatch, "encryption", "enable") == 1
    assert "stop that appliance" in capsys.readouterr().err
    for _ in range(2):  # again changes nothing
        assert run(monkeypatch, "encryption", "enable") == 0
    id = encryption.key_id(bytes.fromhex(KEY))
    assert id in capsys.readouterr().out
    assert b"laptop" not in (home / "appliance.db").read_bytes()
    assert run(monkeypatch, "token", "list") == 0
    assert "laptop" in capsys.readouterr().out

    assert run(monkeypatch, "encryption", "rotate") == 1
    assert "there is no new key" in capsys.readouterr().err
    monkeypatch.setenv(commands.NEW, OTHER)
    assert run(monkeypatch, "encryption", "rotate") == 0
    assert encryption.key_id(bytes.fromhex(OTHER)) in capsys.readouterr().out
    assert run(monkeypatch, "token", "list") == 1
    assert f"not with the given key {id}" in capsys.readouterr().err
    monkeypatch.delenv(encryption.VARIABLE)
    assert run(monkeypatch, "encryption", "status") == 0
    assert f"is encrypted with the key {encryption.key_id(bytes.fromhex(OTHER))}" in capsys.readouterr().out
    monkeypatch.setenv(encryption.VARIABLE, OTHER)
    assert run(monkeypatch, "audit", "verify") == 0
    assert "are intact" in capsys.readouterr().out


def test_a_missing_encryption_json_is_named_and_nothing_is_created(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(encryption.VARIABLE, KEY)
    assert run(monkeypatch, "token", "create", "laptop") == 0
    file = home / "encryption.json"
    backup = file.read_bytes()
    file.unlink()
    capsys.readouterr()
    says = "encrypted, but encryption.json is missing: restore that file from a backup"
    assert run(monkeypatch, "encryption", "enable") == 1
    assert says in capsys.readouterr().err
    assert run(monkeypatch, "encryption", "status") == 0
    assert f"is encrypted, but {file} is missing" in capsys.readouterr().out
    monkeypatch.delenv(encryption.VARIABLE)
    assert run(monkeypatch, "token", "list") == 1
    assert says in capsys.readouterr().err
    assert not file.exists()
    file.write_bytes(backup)
    monkeypatch.setenv(encryption.VARIABLE, KEY)
    assert run(monkeypatch, "token", "list") == 0
    assert "laptop" in capsys.readouterr().out
