"""Signs people in: checks a password or the response of the identity provider, and stores a session."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import httpx
from msgspec import structs

from appliance.config import Config, OidcConfig
from appliance.domain import token
from appliance.domain.access import client_network
from appliance.domain.audit import AuditEvent
from appliance.domain.errors import NotFound, SignInRefused, Throttled
from appliance.domain.failed_attempts import FailedAttempts
from appliance.domain.user import (
    LONGEST_PASSWORD,
    Session,
    User,
    browser_name,
    claim_values,
    is_name,
    name_from,
    new_secret,
)
from appliance.gateway.sign_on.authorization_request import AuthorizationRequests
from appliance.gateway.sign_on.passwords import Passwords
from appliance.gateway.sign_on.provider import Claims, Provider
from appliance.store.users import UserTable

#: Failed passwords of one account within ``_WINDOW`` seconds: from one address, and from all together.
MAX_FROM_ADDRESS: Final = 5
MAX_OF_ACCOUNT: Final = 30
_WINDOW: Final = 300.0
#: The same message for all reasons: it must not reveal which users exist.
_WRONG: Final = "The username or the password is wrong."


class Browser(NamedTuple):
    """The browser of a person who signs in."""

    address: str  # IP address
    user_agent: str


class ProviderCallback(NamedTuple):
    """Parameters of the provider's redirect to the callback URL."""

    authorization_request: str  # encrypted
    state: str
    code: str
    issuer: str | None  # RFC 9207


class SignOn:
    """Signs people in. The record of each sign-in is stored with its session."""

    def __init__(
        self,
        users: UserTable,
        config: Config,
        key: bytes,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """``key`` is a key of Fernet; ``transport`` replaces the network to the provider."""
        self._users = users
        self._requests = AuthorizationRequests(key)
        self._transport = transport
        self._passwords = Passwords()
        self._by_address = FailedAttempts()
        self._by_pair = FailedAttempts(MAX_FROM_ADDRESS, _WINDOW)
        self._by_account = FailedAttempts(MAX_OF_ACCOUNT, _WINDOW)
        self._provider: Provider | None = None
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Use ``config`` for sign-ins from now on."""
        self._config = config.sign_on
        self._server_account = config.server.account
        self._public_url = config.server.public_url
        oidc = config.sign_on.oidc
        callback = f"{self._public_url}/signin/callback"
        self._provider = None if oidc is None else Provider(oidc, callback, self._transport)

    @property
    def provider_name(self) -> str | None:
        """Return the name of the provider on the sign-in page; None without a provider."""
        return None if self._config.oidc is None else self._config.oidc.name

    async def takes_passwords(self) -> bool:
        """Return whether there are people who may sign in with a password."""
        return self._config.passwords and any(user.password for user in await self._users.all())

    async def with_password(
        self, name: str, password: str, browser: Browser, event: Callable[[User, Session], AuditEvent]
    ) -> tuple[str, Session]:
        """Return the secret of a new session, and the session. ``event`` returns the record of the sign-in.

        Raises:
            SignInRefused: the password is wrong, or there is no such user.
            Throttled: too many passwords were wrong; the right password is refused too.
        """
        name = name.strip().lower()
        name = name if is_name(name) else "?"  # no account has this name
        network = client_network(browser.address)
        counters = (
            (self._by_address, network),
            (self._by_pair, f"{name} {network}"),
            (self._by_account, name),
        )
        now = time.monotonic()
        if wait := max(failures.retry_after(key, now) for failures, key in counters):
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
        if (rehashed := await self._passwords.rehash(known, password)) is not None:
            if not await self._users.rehash(name, known, rehashed):  # the password was changed meanwhile
                raise SignInRefused(_WRONG, name)
            user = structs.replace(user, password=rehashed)
        return await self._store(user, browser, event)

    async def begin_at_provider(self) -> tuple[str, str]:
        """Return the URL at which the person signs in, and the encrypted request for the browser.

        Raises:
            NotFound: there is no provider.
            ProviderFailed: the provider does not answer.
        """
        request, encrypted = self._requests.begin()
        return await self._found_provider().authorization_url(request), encrypted

    async def finish_at_provider(
        self, callback: ProviderCallback, browser: Browser, event: Callable[[User, Session], AuditEvent]
    ) -> tuple[str, Session]:
        """Return the secret of a new session, and the session, for the answer of the provider.

        Raises:
            NotFound: there is no provider.
            SignInRefused: the answer is not valid, or was used already, or the person has no account here.
            ProviderFailed: the provider does not answer.
            Throttled: the browser has sent too many answers that are not valid.
        """
        provider, network, now = self._found_provider(), client_network(browser.address), time.monotonic()
        if wait := self._by_address.record(network, now):
            raise Throttled(f"Too many sign-ins failed: try again in {wait} s.", retry_after=wait)
        request = self._requests.finish(callback.authorization_request, callback.state)
        claims = await provider.claims(request, callback.code, callback.issuer)
        made = await self._store(self._person(provider.config, claims), browser, event)
        self._by_address.withdraw(network)
        return made

    async def end_session_url(self) -> str | None:
        """Return the URL at which a person can sign out of the provider too; None if there is none."""
        if self._provider is None:
            return None
        return await self._provider.end_session_url(f"{self._public_url}/")

    def _found_provider(self) -> Provider:
        if self._provider is None:
            raise NotFound("There is no identity provider: set sign_on.oidc in models.yaml.")
        return self._provider

    def _person(self, oidc: OidcConfig, claims: Claims) -> User:
        """Return the user whom the claims describe.

        Raises:
            SignInRefused: the claims give no name for an account, or that of the administrator.
        """
        claim = oidc.account_claim
        value = claims.get(claim)
        name = name_from(value) if isinstance(value, str) else None
        if name is None:
            raise SignInRefused(
                f"The provider sent no usable claim {claim}, which names the account: ask your administrator "
                "to correct sign_on.oidc.account_claim or sign_on.oidc.scopes."
            )
        if claim == "email" and claims.get("email_verified") is not True:
            raise SignInRefused("The provider has not verified your e-mail address.")
        if name == self._server_account:
            raise SignInRefused(
                f'The account "{name}" is that of the administrator (server.account): nobody can sign in '
                "to it at a provider."
            )
        groups = () if oidc.groups_claim is None else claim_values(claims.get(oidc.groups_claim))
        return User(
            name=name,
            created_at=time.time(),
            issuer=oidc.issuer,
            subject=claims["sub"],
            groups_claim=groups,
        )

    async def _store(
        self, user: User, browser: Browser, event: Callable[[User, Session], AuditEvent]
    ) -> tuple[str, Session]:
        secret, now = new_secret(), time.time()
        made = Session(
            id=f"session-{token.new_id()}",
            user=user.name,
            digest=token.digest(secret),
            created_at=now,
            expires_at=now + self._config.session,
            address=browser.address,
            browser=browser_name(browser.user_agent),
        )
        stored = await self._users.sign_in(user, made, lambda known: event(known, made))
        if stored is None and await self._users.is_erased(user):
            raise SignInRefused(
                "The data of your account is being erased: sign in again when the erasure has ended.",
                user.name,
            )
        if stored is None:
            raise SignInRefused(
                f'The account "{user.name}" belongs to another person: ask your administrator.', user.name
            )
        return secret, made
