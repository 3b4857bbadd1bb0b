"""Authentication of requests by their API token."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final, Protocol

from msgspec import structs

from appliance.config import SignOnConfig
from appliance.domain import access, token
from appliance.domain.access import Policy, client_network
from appliance.domain.errors import PermissionDenied, Throttled, Unauthenticated
from appliance.domain.failed_attempts import FailedAttempts
from appliance.domain.prediction import Prediction
from appliance.domain.token import RunTokens, Scope, Token
from appliance.domain.user import PREFIX, Session, User

_log = logging.getLogger(__name__)

#: Seconds for which a found token is cached. A token that the command line has revoked works for so long.
MEMORY: Final = 1.0
#: Seconds between two writes of a token's last use.
USE_EVERY: Final = 60.0
_REMEMBERED: Final = 1000  # tokens in the cache, at most
_ENDED: Final = "This session has ended: sign in again."


class TokenLookup(Protocol):
    """The store's methods for tokens."""

    async def find_token(self, digest: str) -> Token | None:
        """Return the token with this digest; None if there is none or it is revoked."""

    async def token(self, id: str) -> Token | None:
        """Return the token with this id, revoked or not."""

    def record_token_use(self, id: str, at: float, address: str) -> asyncio.Future[None]:
        """Store the last use of a token."""


class UserLookup(Protocol):
    """The store's methods for users and sessions."""

    async def find(self, name: str) -> User | None:
        """Return the user of an account."""

    async def find_session(self, digest: str) -> tuple[Session, User] | None:
        """Return the session with this digest, also if it has ended, and its user."""

    def record_session_use(self, id: str, at: float, address: str) -> asyncio.Future[None]:
        """Store the last use of a session."""


class Auth:
    """Checks the ``Authorization`` header of requests."""

    def __init__(
        self,
        tokens: TokenLookup,
        users: UserLookup,
        run_tokens: RunTokens,
        running: Callable[[str, int], Prediction | None],
        policy: Policy,
        sign_on: SignOnConfig,
        groups_changed: Callable[[frozenset[str]], None],
    ) -> None:
        """Create the authentication of one gateway.

        ``running(id, attempt)`` returns the prediction with this id if it is running that attempt.
        ``groups_changed`` gets the names of groups that an account has joined or left.
        """
        self._tokens = tokens
        self._users = users
        self._run_tokens = run_tokens
        self._running = running
        self._found: dict[str, tuple[float, Token]] = {}
        self._used: dict[str, float] = {}  # when the last use was written, by id of the token
        self._failures = FailedAttempts()
        self._sign_on = sign_on
        self._groups_changed = groups_changed
        self._people: dict[str, User] = {}  # of identity providers, by account, as they last signed in
        self.policy = policy

    def apply(self, policy: Policy, sign_on: SignOnConfig | None = None) -> None:
        """Use ``policy`` and ``sign_on`` from the next request on; None keeps the present ``sign_on``."""
        self._sign_on = sign_on or self._sign_on
        for account, user in self._people.items():
            policy.set_provider_groups(account, self._sign_on.groups_of(user))
        self.policy = policy
        self._found.clear()

    async def caller(self, header: str | None, address: str) -> Token:
        """Return the token in an ``Authorization`` header of a request from the IP address ``address``.

        Raises:
            Unauthenticated: the header has no token, or the token is unknown, revoked or expired.
            PermissionDenied: the token may not be used from ``address``.
            Throttled: ``address`` has sent too many unknown tokens. Its valid tokens still work.
        """
        secret = token.parse(header)
        if header is None or secret is None:
            raise Unauthenticated(token_given=False)
        made_for = self._run_tokens.read(secret)
        if made_for is not None:
            return await self._acting(*made_for)
        found = await self._find(header, secret)
        if found is None:
            wait = self._failures.record(client_network(address), time.monotonic())
            if wait:
                raise Throttled(
                    f"Too many requests from {address} had unknown tokens: try again in {wait} s.",
                    retry_after=wait,
                )
            raise Unauthenticated(token_given=True)
        now = time.time()
        if found.session is not None:
            if found.expired(now):
                raise Unauthenticated(token_given=True, reason=_ENDED)
            self._record_use(found, now, address)
            return found
        if found.expires_at is not None and found.expired(now):
            at = datetime.fromtimestamp(found.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            raise Unauthenticated(token_given=True, reason=f"This token expired at {at}: use another.")
        if found.networks is not None and not access.is_within(address, found.networks):
            raise PermissionDenied(f"This token may not be used from the address {address}.")
        self._record_use(found, now, address)
        return found

    def forget(self, id: str) -> None:
        """Look up the token or session with this id again at its next use, because it was revoked."""
        kept = ((key, each) for key, each in self._found.items() if id not in {each[1].id, each[1].session})
        self._found = dict(kept)
        self._used.pop(id, None)

    def load_groups(self, users: Iterable[User]) -> None:
        """Give all users their groups, before the first requests of the users."""
        for user in users:
            self._set_groups(user.name, user)

    async def _learn_groups(self, account: str) -> None:
        """Give an account the groups that the provider of its user named at the last sign-in."""
        if self._sign_on.oidc is not None or self.policy.has_provider_groups:
            self._set_groups(account, await self._users.find(account))

    def _set_groups(self, account: str, user: User | None) -> None:
        if user is None or user.issuer is None:
            self._people.pop(account, None)
        else:
            self._people[account] = user
        changed = self.policy.set_provider_groups(
            account, frozenset() if user is None else self._sign_on.groups_of(user)
        )
        if changed:
            self._groups_changed(changed)

    async def _find(self, header: str, secret: str) -> Token | None:
        """Return the token, with what it permits; None if it is unknown or revoked."""
        # Python hashes strings with a random key, so the time of this lookup reveals nothing about a secret.
        now = time.monotonic()
        at, known = self._found.get(header, (0.0, None))
        if known is not None and now - at < MEMORY:
            return known
        if secret.startswith(PREFIX):
            found = await self._find_session(secret)
        else:
            found = await self._tokens.find_token(token.digest(secret))
        if found is None:
            self._found.pop(header, None)
            return None
        await self._learn_groups(found.owner)
        found = structs.replace(found, access=self.policy.of(found.owner).only(found.models))
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[header] = now, found
        return found

    async def _find_session(self, secret: str) -> Token | None:
        """Return the token of a session; it has expired if the session has ended or is not permitted."""
        found = await self._users.find_session(token.digest(secret))
        if found is None:
            return None
        session, user = found
        scope = self._sign_on.scope_of(user)
        ended = 0.0 if scope is None else session.ended_at
        return Token(
            id=user.token_id,
            name=user.name,
            owner=user.name,
            digest=session.digest,
            created_at=session.created_at,
            scope=scope or Scope.READ,
            expires_at=session.expires_at if ended is None else ended,
            last_used_at=session.last_used_at,
            session=session.id,
            signed_in_with=user.method,
        )

    def _record_use(self, used: Token, now: float, address: str) -> None:
        """Write the last use of a token, at most once in ``USE_EVERY``. The request does not wait for it."""
        id = used.session or used.id
        if now - self._used.get(id, used.last_used_at or 0.0) < USE_EVERY:
            return
        self._used[id] = now
        record = self._tokens.record_token_use if used.session is None else self._users.record_session_use
        record(id, now, address).add_done_callback(_log_failure)

    async def _acting(self, id: str, attempt: int) -> Token:
        """Return the token with which a running prediction calls the API.

        It may use the models that its owner and the token that created the prediction may use.
        """
        record = self._running(id, attempt)
        if record is None:
            raise Unauthenticated(token_given=True)
        await self._learn_groups(record.owner)
        creator = None if record.token is None else await self._tokens.token(record.token)
        allowed = self.policy.of(record.owner).only(None if creator is None else creator.models)
        return Token(
            id=f"run-{id}",
            name=f"prediction {id}",
            owner=record.owner,
            digest="",
            created_at=record.created_at,
            scope=Scope.RUN,
            prediction=id,
            access=allowed,
        )


def _log_failure(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and written.exception() is not None:
        _log.warning("the last use of a token was not stored: %s", written.exception())
