"""Usernames, passwords and claims."""

from __future__ import annotations

import pytest

from appliance.domain import user
from appliance.domain.user import User, claim_values, is_name, name_from, password_problem


@pytest.mark.parametrize(
    ("claim", "name"),
    [
        ("anna", "anna"),
        ("Anna@Example.org", "anna-example-org"),
        ("DOMAIN\\ben", "domain-ben"),
        ("_x_", "x"),
        ("../..", None),
        ("", None),
        ("a" * 200, "a" * 100),
    ],
)
def test_the_username_of_a_claim(claim: str, name: str | None) -> None:
    assert name_from(claim) == name
    assert name is None or is_name(name)


@pytest.mark.parametrize("name", ["", "Anna", "-anna", "anna-", "a/b", "a b", "a" * 101, "ä"])
def test_what_is_no_username(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("correct horse", None),
        ("short", "12 to 1000 characters"),
        ("x" * 1001, "12 to 1000 characters"),
        ("ababababababab", "more different characters"),
        ("annabella-annabella1", None),
        ("annabella123", "must not be made of the username"),
    ],
)
def test_weak_passwords_are_refused(password: str, problem: str | None) -> None:
    found = password_problem(password, "annabella")
    assert found is None if problem is None else problem in (found or "")


def test_only_texts_of_a_groups_claim_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim_values(["a", 1, None, "b", "a", {}, "", "x" * 201]) == ("a", "b")
    assert claim_values("a") == ("a",)
    assert claim_values(None) == claim_values({"a": 1}) == ()
    monkeypatch.setattr(user, "MAX_GROUPS", 2)
    assert claim_values(["a", "b", "c"]) == ("a", "b")


def test_claims_become_the_groups_that_the_config_names() -> None:
    anna = User(name="anna", created_at=0.0, groups_claim=("/vision", "/other"))
    assert anna.groups({"/vision": "vision", "/ops": "operators"}) == {"vision"}
    assert anna.groups({}) == frozenset()
