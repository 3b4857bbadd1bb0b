"""Tokens: what a header gives, and what is kept."""

from __future__ import annotations

import pytest

from appliance.domain import token


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer apl_x", "apl_x"),
        ("Token apl_x", "apl_x"),
        ("token   apl_x ", "apl_x"),
        ("BEARER with spaces", "with spaces"),
        ("Basic apl_x", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("apl_x", None),
        ("", None),
        (None, None),
    ],
)
def test_both_schemes_of_the_clients_are_read(header: str | None, secret: str | None) -> None:
    assert token.parse(header) == secret


def test_the_audit_log_gets_the_limits_of_a_token() -> None:
    made = token.Token(
        id="id",
        name="laptop",
        owner="me",
        digest=token.digest("secret"),
        created_at=0.0,
        scope=token.Scope.RUN,
        expires_at=86400.0,
        networks=("10.0.0.0/8",),
        models=("me/*",),
    )
    assert token.recorded(made) == {
        "name": "laptop",
        "owner": "me",
        "scope": "run",
        "expires_at": "1970-01-02T00:00:00+00:00",
        "networks": ("10.0.0.0/8",),
        "models": ("me/*",),
    }


def test_secrets_are_fresh_long_and_safe_in_a_url() -> None:
    made = {token.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("apl_") and len(secret) == 44 for secret in made)
    assert all(character.isalnum() or character in "-_" for secret in made for character in secret)


def test_a_digest_is_the_same_for_the_same_secret_and_does_not_hold_it() -> None:
    secret = token.new_token()
    assert token.digest(secret) == token.digest(secret) != token.digest(secret + "x")
    assert secret not in token.digest(secret)
