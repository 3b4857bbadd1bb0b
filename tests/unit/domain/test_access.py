"""What accounts and tokens may do: properties of the policy for random groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.domain.access import (
    Access,
    Group,
    Policy,
    Right,
    client_network,
    is_within,
    matches,
    network,
)

PATTERNS = some.lists(some.sampled_from(["*", "a/*", "b/*", "*/x", "a/x", "b/y*"]), max_size=3).map(tuple)
MODELS = some.sampled_from(["a/x", "a/y", "b/x", "b/y", "b/y2", "c/z"])
ACCOUNTS = some.sampled_from(["anna", "ben", "carol"])
RIGHTS = some.frozensets(some.sampled_from(list(Right)))
GROUPS = some.lists(
    some.builds(Group, some.just("g"), some.frozensets(ACCOUNTS), PATTERNS, RIGHTS), max_size=4
)


@given(account=ACCOUNTS, model=MODELS)
def test_without_groups_everything_is_allowed(account: str, model: str) -> None:
    found = Policy().of(account)
    assert found.allows(model)
    assert not found.restricted
    assert found.rights == set(Right)


@given(
    groups=GROUPS,
    everybody=some.builds(Group, some.just("e"), some.just(frozenset()), PATTERNS, RIGHTS),
    account=ACCOUNTS,
    model=MODELS,
)
def test_an_account_has_the_union_of_its_groups(
    groups: list[Group], everybody: Group, account: str, model: str
) -> None:
    found = Policy(groups, everybody, "root").of(account)
    its = [everybody, *(group for group in groups if account in group.members)]
    assert found.allows(model) == any(matches(model, group.models) for group in its)
    assert found.rights == {right for group in its for right in group.rights}


@given(groups=GROUPS, account=ACCOUNTS, model=MODELS, more=GROUPS)
def test_another_group_never_takes_anything_away(
    groups: list[Group], account: str, model: str, more: list[Group]
) -> None:
    before, after = Policy(groups).of(account), Policy(groups + more).of(account)
    assert after.allows(model) or not before.allows(model)
    assert after.rights >= before.rights


@given(groups=GROUPS, account=ACCOUNTS, model=MODELS, patterns=PATTERNS)
def test_a_token_has_the_cut_of_its_models_and_those_of_its_owner(
    groups: list[Group], account: str, model: str, patterns: tuple[str, ...]
) -> None:
    owner = Policy(groups).of(account)
    assert owner.only(patterns).allows(model) == (owner.allows(model) and matches(model, patterns))
    assert owner.only(None) == owner


@given(groups=GROUPS)
def test_the_account_of_the_appliance_may_do_everything(groups: list[Group]) -> None:
    assert Policy(groups, None, "root").of("root") == Access("root")
    assert Policy(groups, None, "").of(None).models != () or any("*" in group.models for group in groups)


def test_a_request_without_a_token_has_what_everybody_has() -> None:
    everybody = Group("everybody", frozenset(), ("a/*",), frozenset())
    found = Policy([Group("g", frozenset({"anna"}), ("*",), frozenset(Right))], everybody, "root").of(None)
    assert (found.allows("a/x"), found.allows("b/x"), found.rights) == (True, False, frozenset())


@pytest.mark.parametrize(
    ("pattern", "model", "found"),
    [
        ("a/*", "a/x", True),
        ("a/*", "ab/x", False),
        ("*", "a/x", True),
        ("*/x", "a/x", True),
        ("a.b/*", "acb/x", False),
        ("a*", "a/x", False),
    ],
)
def test_a_star_stands_for_anything_but_a_slash(pattern: str, model: str, found: bool) -> None:
    assert matches(model, (pattern,)) is found


def test_networks() -> None:
    assert [network(text) for text in ("10.0.0.7", "10.0.0.7/8", "fd00::1/8", "x", "")] == [
        "10.0.0.7/32",
        "10.0.0.0/8",
        "fd00::/8",
        None,
        None,
    ]
    assert is_within("::ffff:10.1.2.3", ["10.0.0.0/8"])
    assert not is_within("11.0.0.1", ["10.0.0.0/8"])


def test_the_addresses_of_an_ipv6_network_belong_to_one_client() -> None:
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff") == "2001:db8::/64"
    assert client_network("2001:db8:0:1::1") == "2001:db8:0:1::/64"
    assert client_network("192.0.2.1") == "192.0.2.1"
    assert client_network("::ffff:192.0.2.1") == "::ffff:192.0.2.1"
    assert client_network("unknown") == "unknown"


def test_groups_from_claims_count_like_groups_of_members() -> None:
    vision = Group("vision", frozenset({"anna"}), ("vision/*",), frozenset({Right.RUN}))
    operators = Group("operators", frozenset(), ("*",), frozenset({Right.OPERATE}))
    policy = Policy([vision, operators], None, "me")
    assert policy.of("anna") == Access("anna", (("vision/*",),), frozenset({Right.RUN}))
    policy.set_provider_groups("anna", frozenset({"operators", "no such group"}))
    assert [group.name for group in policy.groups_of("anna")] == ["vision", "operators"]
    assert policy.of("anna") == Access("anna", (), frozenset({Right.RUN, Right.OPERATE}))
    assert policy.of("ben").rights == frozenset()


def test_a_group_that_an_identity_provider_names_counts_like_a_listed_one() -> None:
    batch = Group("batch", frozenset({"ben"}), (), frozenset(), priority=-3)
    policy = Policy([batch], Group("everybody", frozenset(), (), frozenset()), "root")
    assert (policy.priority("anna"), policy.priority("ben")) == (0, -3)
    assert policy.set_provider_groups("anna", frozenset({"batch"})) == {"batch"}
    assert batch in policy.groups_of("anna")
    assert policy.priority("anna") == -3


def test_the_priority_follows_the_claimed_groups() -> None:
    policy = Policy([Group("batch", frozenset(), ("*",), frozenset(), priority=-2)])
    assert policy.priority("anna") == 0
    policy.set_provider_groups("anna", frozenset({"batch"}))
    assert policy.priority("anna") == -2
    assert policy.set_provider_groups("anna", frozenset()) == {"batch"}
    assert policy.priority("anna") == 0
