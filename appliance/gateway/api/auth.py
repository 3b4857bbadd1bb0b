"""Authentication of requests by their API token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from appliance.domain import token
from appliance.domain.errors import Unauthenticated
from appliance.domain.prediction import Prediction
from appliance.domain.token import RunTokens, Scope, Token

#: Seconds for which a found token is cached. A token that the command line has revoked works for so long.
MEMORY: Final = 1.0
_REMEMBERED: Final = 1000  # tokens in the cache, at most


class TokenLookup(Protocol):
    """The store's method that finds tokens."""

    async def find_token(self, digest: str) -> Token | None:
        """Return the token with this digest; None if there is none or it is revoked."""


class Auth:
    """Checks the ``Authorization`` header of requests."""

    def __init__(
        self, tokens: TokenLookup, run_tokens: RunTokens, running: Callable[[str, int], Prediction | None]
    ) -> None:
        """``running(id, attempt)`` returns the prediction with this id if it is running that attempt."""
        self._tokens = tokens
        self._run_tokens = run_tokens
        self._running = running
        self._found: dict[str, tuple[float, Token]] = {}

    async def caller(self, header: str | None) -> Token:
        """Return the token in an ``Authorization`` header.

        Raises:
            Unauthenticated: the header has no token, or the token is unknown, revoked or expired.
        """
        secret = token.parse(header)
        if header is None or secret is None:
            raise Unauthenticated(token_given=False)
        # Python hashes strings with a random key, so the time of this lookup reveals nothing about a secret.
        now = time.monotonic()
        at, known = self._found.get(header, (0.0, None))
        if known is not None and now - at < MEMORY:
            return known
        made_for = self._run_tokens.read(secret)
        if made_for is not None:
            return self._acting(*made_for)
        found = await self._tokens.find_token(token.digest(secret))
        if found is None:
            self._found.pop(header, None)
            raise Unauthenticated(token_given=True)
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[header] = now, found
        return found

    def forget(self, id: str) -> None:
        """Look up the token with this id again at its next use, because it was revoked."""
        self._found = {header: found for header, found in self._found.items() if found[1].id != id}

    def _acting(self, id: str, attempt: int) -> Token:
        """Return the token with which a running prediction calls the API."""
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
