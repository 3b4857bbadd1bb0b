"""The first API token of an appliance, which the driver creates before the gateway starts."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.domain import token
from appliance.domain.token import Scope, Token
from appliance.store import Store


async def first_token(database: Path, url: str | None, owner: str, given: str | None) -> str | None:
    """Create the first API token; return its secret, or None if there is a valid token already.

    If ``given`` is not None, a token with that secret is added instead, and None is returned.
    """
    store = Store(database, url=url)
    await store.open()
    try:
        if given is not None:
            if await store.find_token(token.digest(given)) is None:
                await store.add_token(_token("environment", owner, given))
            return None
        if any(known.valid(time.time()) for known in await store.list_tokens()):
            return None
        secret = token.new_token()
        await store.add_token(_token("first", owner, secret))
        return secret
    finally:
        await store.close()


def _token(name: str, owner: str, secret: str) -> Token:
    return Token(
        id=token.new_id(),
        name=name,
        owner=owner,
        digest=token.digest(secret),
        created_at=time.time(),
        scope=Scope.ADMIN,
    )
