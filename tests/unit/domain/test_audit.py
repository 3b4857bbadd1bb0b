"""Records of the audit log: what is hidden, and that every text can be stored."""

from __future__ import annotations

import os
from typing import Any

import pytest

from appliance.domain import audit
from appliance.domain.audit import HIDDEN, AuditEvent


@pytest.mark.parametrize(
    "key",
    [
        *("accessToken", "tokens", "private_key", "privateKey", "HF_TOKEN", "hfToken", "NGROK_AUTHTOKEN"),
        *("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "apikey", "APIKey", "clientSecret", "secrets", "passphrase"),
        "models.acme/m.environment.HF_TOKEN",
    ],
)
@pytest.mark.parametrize("value", ["plain", {"value": "plain"}, [{"value": "plain"}], ["plain"]])
def test_values_of_secret_keys_are_hidden(key: str, value: Any) -> None:
    assert "plain" not in str(audit.masked({key: value}))


@pytest.mark.parametrize("key", ["tokenizer", "name", "max_memory", "monkey", "secretary", "keys"])
def test_values_of_other_keys_are_kept(key: str) -> None:
    assert audit.masked({key: {"value": "plain"}}) == {key: {"value": "plain"}}


def test_numbers_of_tokens_are_kept() -> None:
    assert audit.masked({"max_tokens": 512, "stop_tokens": [1]}) == {"max_tokens": 512, "stop_tokens": [1]}


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("https://h/x?token=abc", f"https://h/x?token={HIDDEN}"),
        ("https://h/x?a=1&X-Amz-Signature=abc&b=2", f"https://h/x?a=1&X-Amz-Signature={HIDDEN}&b=2"),
        ("see https://h/x?sv=1&sig=a%2Bb; and", f"see https://h/x?sv=1&sig={HIDDEN} and"),
        ("https://h/x?%74oken=abc", f"https://h/x?%74oken={HIDDEN}"),
        ("https://h/x#access_token=abc", f"https://h/x#access_token={HIDDEN}"),
        ("https://h/x?page=2&sort=name", "https://h/x?page=2&sort=name"),
    ],
)
def test_secrets_in_urls_are_hidden(url: str, hidden: str) -> None:
    assert audit.masked({"weights": url}) == {"weights": hidden}


def test_the_id_of_the_token_is_kept() -> None:
    assert audit.make(AuditEvent(action="a", token="0a1b"), audit.START, 0.0).token == "0a1b"


def test_a_file_name_that_is_not_utf_8_is_recorded() -> None:
    name = os.fsdecode(b"/tmp/\xff.tar")
    record = audit.make(AuditEvent(action="backup.create", object=name, after={name: name}), audit.START, 0.0)
    assert record.object == "/tmp/\\udcff.tar"
    assert record.after == {record.object: record.object}
    assert audit.parse(record.body, record.previous, record.hash) == record
