"""Authentication: looks up the token of a request by its digest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from appliance.domain import token
from appliance.domain.errors import Unauthenticated
from appliance.domain.prediction import Prediction
from appliance.domain.token import RunTokens, Scope, Token

#: Seconds for which a token that was found is not looked up again: a revoked one works for so much longer.
MEMORY: Final = 1.0
_REMEMBERED: Final = 1000  # tokens; more than any appliance has users


class TokenLookup(Protocol):
    """Where tokens are kept."""

    async def find_token(self, digest: str) -> Token | None:
        """The token with this digest; None also when it is revoked."""


class Auth:
    """Checks the ``Authorization`` header of requests."""

    def __init__(
        self, tokens: TokenLookup, run_tokens: RunTokens, running: Callable[[str, int], Prediction | None]
    ) -> None:
        """``tokens`` is asked once a second and token, ``running`` for an attempt if it runs."""
        self._tokens = tokens
        self._run_tokens = run_tokens
        self._running = running
        self._found: dict[str, tuple[float, Token]] = {}

    async def caller(self, header: str | None) -> Token:
        """The token that a header carries.

        Raises:
            Unauthenticated: there is none, or it is not one of ours.
        """
        secret = token.parse(header)
        if secret is None:
            raise Unauthenticated(token_given=False)
        made_for = self._run_tokens.read(secret)
        if made_for is not None:
            return self._acting(*made_for)
        # Found by its digest: what a lookup takes tells nothing about the secret itself.
        digest = token.digest(secret)
        now = time.monotonic()
        at, known = self._found.get(digest, (0.0, None))
        if known is not None and now - at < MEMORY:
            return known
        found = await self._tokens.find_token(digest)
        if found is None:
            self._found.pop(digest, None)
            raise Unauthenticated(token_given=True)
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[digest] = now, found
        return found

    def _acting(self, id: str, attempt: int) -> Token:
        """The token of a prediction, valid as long as that runs."""
        record = self._running(id, attempt)
        if record is None:
            raise Unauthenticated(token_given=True)
        return Token(
            id=f"run-{id}",
            name=f"prediction {id}",
            owner=record.owner,
            digest="",
            created_at=record.created_at,
            scope=Scope.RUN,
            prediction=id,
        )
