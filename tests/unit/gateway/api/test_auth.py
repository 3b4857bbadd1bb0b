"""Who is let in, and how long a revoked token works."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec import structs

from appliance.config import SignOnConfig
from appliance.domain import failed_attempts, token
from appliance.domain.access import Group, Policy, Right
from appliance.domain.errors import PermissionDenied, Throttled, Unauthenticated
from appliance.domain.prediction import Prediction, new_id
from appliance.domain.token import RunTokens, Scope, Token
from appliance.domain.user import Session, User
from appliance.gateway.api import auth
from appliance.gateway.api.auth import Auth


class Tokens:
    """Tokens in memory, which count how often they are asked for."""

    def __init__(self, *secrets: str) -> None:
        self.known = {
            token.digest(secret): Token(
                id=secret,
                name="n",
                owner="me",
                digest=token.digest(secret),
                created_at=0,
                scope=Scope.ADMIN,
            )
            for secret in secrets
        }
        self.asked = 0
        self.uses: list[tuple[str, str]] = []

    async def token(self, id: str) -> Token | None:
        return next((each for each in self.known.values() if each.id == id), None)

    def record_token_use(self, id: str, at: float, address: str) -> asyncio.Future[None]:
        self.uses.append((id, address))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    async def find_token(self, digest: str) -> Token | None:
        self.asked += 1
        return self.known.get(digest)


class Users:
    """Users in memory, who do not sign in, and the names that were looked up."""

    def __init__(self, *users: User) -> None:
        self.known = {user.name: user for user in users}
        self.asked: list[str] = []

    async def find(self, name: str) -> User | None:
        self.asked.append(name)
        return self.known.get(name)

    async def find_session(self, digest: str) -> tuple[Session, User] | None:
        return None

    def record_session_use(self, id: str, at: float, address: str) -> asyncio.Future[None]:
        raise NotImplementedError


RUN_TOKENS = RunTokens("key")
HERE = "10.0.0.7"
ISSUER = "https://id.example.org"


def checker(
    tokens: Tokens,
    *running: Prediction,
    policy: Policy | None = None,
    users: Users | None = None,
    sign_on: SignOnConfig | None = None,
    changes: list[frozenset[str]] | None = None,
) -> Auth:
    known = {(record.id, record.attempt): record for record in running}
    return Auth(
        tokens,
        users or Users(),
        RUN_TOKENS,
        lambda *attempt: known.get(attempt),
        policy or Policy(),
        sign_on or SignOnConfig(),
        ([] if changes is None else changes).append,
    )


def provider(groups: dict[str, str]) -> SignOnConfig:
    """Return the config of an identity provider whose claims give these groups."""
    oidc = {"issuer": ISSUER, "client_id": "c", "groups": groups, "groups_claim": "groups"}
    return SignOnConfig.model_validate({"oidc": oidc})


def person(*claims: str) -> User:
    return User(name="me", created_at=0.0, issuer=ISSUER, subject="s", groups_claim=claims)


@pytest.mark.parametrize("header", ["Bearer my secret", "token my secret"])
async def test_both_schemes_are_let_in(header: str) -> None:
    assert (await checker(Tokens("my secret")).caller(header, HERE)).id == "my secret"


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (None, "You did not pass an authentication token"),
        ("Basic abc", "You did not pass an authentication token"),
        ("Bearer other", "You did not pass a valid authentication token"),
    ],
)
async def test_refusals_are_worded_as_on_replicate(header: str | None, detail: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await checker(Tokens("mine")).caller(header, HERE)
    assert caught.value.body() == {"title": "Unauthenticated", "detail": detail, "status": 401}


async def test_a_revoked_token_is_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("appliance.gateway.api.auth.time.monotonic", lambda: now)
    tokens = Tokens("mine")
    checked = checker(tokens)
    for _ in range(3):
        await checked.caller("Bearer mine", HERE)
    assert tokens.asked == 1
    tokens.known.clear()
    now += auth.MEMORY
    with pytest.raises(Unauthenticated):
        await checked.caller("Bearer mine", HERE)


async def test_the_token_of_a_prediction_acts_for_its_owner_while_it_runs() -> None:
    record = Prediction(
        id=new_id(),
        model="a/b",
        version="0" * 64,
        owner="you",
        input={},
        created_at=1.0,
        stream_token="s",
        attempt=2,
    )
    secret = RUN_TOKENS.make(record.id, 2)
    caller = await checker(Tokens(), record).caller(f"Bearer {secret}", HERE)
    assert (caller.owner, caller.scope, caller.prediction) == ("you", Scope.RUN, record.id)
    assert not caller.may(Scope.ADMIN)
    for other in (
        RUN_TOKENS.make(record.id, 1),  # of an attempt that is over
        RunTokens("another key").make(record.id, 2),
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
    ):
        with pytest.raises(Unauthenticated):
            await checker(Tokens(), record).caller(f"Bearer {other}", HERE)
    with pytest.raises(Unauthenticated):  # it has ended
        await checker(Tokens()).caller(f"Bearer {secret}", HERE)


def limited(**limits: object) -> Tokens:
    """Return the token "mine" with these limits."""
    tokens = Tokens("mine")
    tokens.known = {digest: structs.replace(each, **limits) for digest, each in tokens.known.items()}
    return tokens


async def test_an_expired_token_is_refused_with_the_reason() -> None:
    found = await checker(limited(expires_at=time.time() + 60)).caller("Bearer mine", HERE)
    assert found.id == "mine"
    with pytest.raises(Unauthenticated, match="This token expired at 1970-01-01 00:01 UTC"):
        await checker(limited(expires_at=60.0)).caller("Bearer mine", HERE)


@pytest.mark.parametrize("address", ["10.0.0.7", "::ffff:10.0.0.7", "fd00::1"])
async def test_a_token_works_from_its_networks(address: str) -> None:
    tokens = limited(networks=("10.0.0.0/24", "fd00::/8"))
    assert (await checker(tokens).caller("Bearer mine", address)).id == "mine"


@pytest.mark.parametrize("address", ["10.0.1.7", "::1", "unknown", ""])
async def test_a_token_is_refused_from_elsewhere_and_the_address_is_named(address: str) -> None:
    tokens = limited(networks=("10.0.0.0/24", "fd00::/8"))
    with pytest.raises(PermissionDenied, match=f"may not be used from the address {address}"):
        await checker(tokens).caller("Bearer mine", address)
    assert tokens.uses == []


async def test_the_last_use_is_written_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, now = limited(last_used_at=1000.0), [1030.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    auths = checker(tokens)
    for at in (1030.0, 1060.0, 1061.0, 1119.0, 1120.0):
        now[0] = at
        await auths.caller("Bearer mine", HERE)
    assert tokens.uses == [("mine", HERE)] * 2


async def test_the_models_of_a_token_are_cut_with_those_of_its_owner() -> None:
    group = Group("g", frozenset({"me"}), ("a/*", "b/x"), frozenset({Right.RUN}))
    found = await checker(limited(models=("b/*",)), policy=Policy([group])).caller("Bearer mine", HERE)
    assert [name for name in ("a/x", "b/x", "b/y") if found.access.allows(name)] == ["b/x"]
    assert found.access.rights == {Right.RUN}
    assert found.effective_scope is Scope.RUN


async def test_a_running_prediction_may_use_the_models_of_the_token_that_created_it() -> None:
    record = Prediction(
        id=new_id(),
        model="a/b",
        version="0" * 64,
        owner="me",
        input={},
        created_at=1.0,
        stream_token="s",
        attempt=1,
        token="mine",
    )
    secret = RUN_TOKENS.make(record.id, record.attempt)
    auths = checker(limited(models=("a/*",), networks=("192.0.2.0/24",)), record)
    child = await auths.caller(f"Bearer {secret}", HERE)
    assert child.access.allows("a/x")
    assert not child.access.allows("b/x")


async def test_an_address_that_sends_many_unknown_tokens_is_slowed_down() -> None:
    checked = checker(Tokens("mine"))
    for _ in range(failed_attempts.MOST):
        with pytest.raises(Unauthenticated):
            await checked.caller("Bearer guess", HERE)
    with pytest.raises(Throttled, match=f"Too many requests from {HERE}") as refused:
        await checked.caller("Bearer guess", HERE)
    assert 1 <= refused.value.retry_after <= failed_attempts.WINDOW
    assert (await checked.caller("Bearer mine", HERE)).id == "mine"
    with pytest.raises(Unauthenticated):
        await checked.caller("Bearer guess", "10.0.0.8")


async def test_changed_groups_of_an_identity_provider_are_reported_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("appliance.gateway.api.auth.time.monotonic", lambda: now)
    users, changes = Users(person("/a")), list[frozenset[str]]()
    policy = Policy([Group(name, frozenset(), ("*",), frozenset()) for name in ("a", "b")])
    sign_on = provider({"/a": "a", "/b": "b"})
    checked = checker(Tokens("mine"), policy=policy, users=users, sign_on=sign_on, changes=changes)
    for claims in (("/a",), ("/a",), ("/b",), ()):
        users.known["me"] = person(*claims)
        await checked.caller("Bearer mine", HERE)
        now += auth.MEMORY
    assert changes == [{"a"}, {"a", "b"}, {"b"}]


async def test_a_reload_gives_everybody_the_groups_of_the_new_config() -> None:
    def groups() -> Policy:
        return Policy([Group(name, frozenset(), ("*",), frozenset()) for name in ("a", "b")])

    checked = checker(Tokens(), policy=groups(), sign_on=provider({"/x": "a"}))
    checked.load_groups([person("/x")])
    assert [each.name for each in checked.policy.groups_of("me")] == ["a"]
    checked.apply(groups(), provider({"/x": "b"}))
    assert [each.name for each in checked.policy.groups_of("me")] == ["b"]
    checked.apply(groups(), SignOnConfig())
    assert checked.policy.groups_of("me") == []
    checked.apply(groups(), provider({"/x": "a"}))
    assert [each.name for each in checked.policy.groups_of("me")] == ["a"]


async def test_without_an_identity_provider_no_user_is_looked_up() -> None:
    users = Users(person("/a"))
    await checker(Tokens("mine"), users=users).caller("Bearer mine", HERE)
    assert users.asked == []
    await checker(Tokens("mine"), users=users, sign_on=provider({})).caller("Bearer mine", HERE)
    assert users.asked == ["me"]
