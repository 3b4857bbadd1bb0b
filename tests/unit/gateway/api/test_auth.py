"""Who is let in, and how long a revoked token works."""

from __future__ import annotations

import pytest

from appliance.domain import token
from appliance.domain.errors import Unauthenticated
from appliance.domain.prediction import Prediction, new_id
from appliance.domain.token import RunTokens, Scope, Token
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

    async def find_token(self, digest: str) -> Token | None:
        self.asked += 1
        return self.known.get(digest)


RUN_TOKENS = RunTokens("key")


def checker(tokens: Tokens, *running: Prediction) -> Auth:
    known = {(record.id, record.attempt): record for record in running}
    return Auth(tokens, RUN_TOKENS, lambda *attempt: known.get(attempt))


@pytest.mark.parametrize("header", ["Bearer my secret", "token my secret"])
async def test_both_schemes_are_let_in(header: str) -> None:
    assert (await checker(Tokens("my secret")).caller(header)).id == "my secret"


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
        await checker(Tokens("mine")).caller(header)
    assert caught.value.body() == {"title": "Unauthenticated", "detail": detail, "status": 401}


async def test_a_revoked_token_is_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("appliance.gateway.api.auth.time.monotonic", lambda: now)
    tokens = Tokens("mine")
    checked = checker(tokens)
    for _ in range(3):
        await checked.caller("Bearer mine")
    assert tokens.asked == 1
    tokens.known.clear()
    now += auth.MEMORY
    with pytest.raises(Unauthenticated):
        await checked.caller("Bearer mine")


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
    caller = await checker(Tokens(), record).caller(f"Bearer {secret}")
    assert (caller.owner, caller.scope, caller.prediction) == ("you", Scope.RUN, record.id)
    assert not caller.may(Scope.ADMIN)
    for other in (
        RUN_TOKENS.make(record.id, 1),  # of an attempt that is over
        RunTokens("another key").make(record.id, 2),
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
    ):
        with pytest.raises(Unauthenticated):
            await checker(Tokens(), record).caller(f"Bearer {other}")
    with pytest.raises(Unauthenticated):  # it has ended
        await checker(Tokens()).caller(f"Bearer {secret}")
