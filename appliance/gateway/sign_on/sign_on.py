"""Signs people in: checks what they know, and stores a session."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec import structs

from appliance.config import SignOnConfig
from appliance.domain import token
from appliance.domain.access import client_network
from appliance.domain.audit import Act
from appliance.domain.errors import SignInRefused, Throttled
from appliance.domain.failed_attempts import FailedAttempts
from appliance.domain.user import LONGEST_PASSWORD, Session, User, browser_name, is_name, new_secret
from appliance.gateway.sign_on.passwords import Passwords
from appliance.store.users import UserTable

#: Failed passwords of one account within ``_WINDOW`` seconds: from one address, and from all together.
MOST_FROM_ADDRESS: Final = 5
MOST_OF_ACCOUNT: Final = 30
_WINDOW: Final = 300.0
#: The same message for all reasons: it must not reveal which users exist.
_WRONG: Final = "The username or the password is wrong."


class Client(NamedTuple):
    """The browser of a person who signs in."""

    address: str  # IP address
    browser: str  # User-Agent header


class SignOn:
    """Signs people in. The record of each sign-in is stored with its session."""

    def __init__(self, users: UserTable, config: SignOnConfig) -> None:
        self._users = users
        self._config = config
        self._passwords = Passwords()
        self._by_address = FailedAttempts()
        self._by_pair = FailedAttempts(MOST_FROM_ADDRESS, _WINDOW)
        self._by_account = FailedAttempts(MOST_OF_ACCOUNT, _WINDOW)

    def apply(self, config: SignOnConfig) -> None:
        """Use ``config`` for sign-ins from now on."""
        self._config = config

    async def takes_passwords(self) -> bool:
        """Return whether there are people who may sign in with a password."""
        return self._config.passwords and any(user.password for user in await self._users.all())

    async def with_password(
        self, name: str, password: str, client: Client, act: Callable[[User, Session], Act]
    ) -> tuple[str, Session]:
        """Return the secret of a new session, and the session. ``act`` returns the record of the sign-in.

        Raises:
            SignInRefused: the password is wrong, or there is no such user.
            Throttled: too many passwords were wrong; the right password is refused too.
        """
        name = name.strip().lower()
        name = name if is_name(name) else "?"  # no account has this name
        network = client_network(client.address)
        counters = (
            (self._by_address, network),
            (self._by_pair, f"{name} {network}"),
            (self._by_account, name),
        )
        now = time.monotonic()
        if wait := max(failures.wait(key, now) for failures, key in counters):
            raise Throttled(f"Too many wrong passwords: try again in {wait} s.", retry_after=wait)
        for failures, key in counters:  # before the check, so that parallel guesses are counted too
            failures.record(key, now)
        user = await self._users.find(name) if self._config.passwords else None
        known = None if user is None else user.password
        if not await self._passwords.matches(known, password[: LONGEST_PASSWORD + 1]):
            raise SignInRefused(_WRONG, None if known is None else name)
        assert user is not None
        assert known is not None
        self._by_pair.forget(f"{name} {network}")
        self._by_account.withdraw(name)
        self._by_address.withdraw(network)
        if (renewed := await self._passwords.renewed(known, password)) is not None:
            await self._users.rehash(name, renewed)
            user = structs.replace(user, password=renewed)
        return await self._store(user, client, act)

    async def _store(
        self, user: User, client: Client, act: Callable[[User, Session], Act]
    ) -> tuple[str, Session]:
        secret, now = new_secret(), time.time()
        made = Session(
            id=f"session-{token.new_id()}",
            user=user.name,
            digest=token.digest(secret),
            created_at=now,
            expires_at=now + self._config.session,
            address=client.address,
            browser=browser_name(client.browser),
        )
        stored = await self._users.sign_in(user, made, lambda known: act(known, made))
        if stored is None:
            raise SignInRefused(
                f'The account "{user.name}" belongs to another person: ask your administrator.', user.name
            )
        return secret, made
