"""People who sign in to the UI, and their sessions. Times are Unix seconds. Pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from appliance.domain.token import Scope

#: Prefix of the secrets of sessions: secrets without it are looked up only among the API tokens.
PREFIX: Final = "apl_session_"
LONGEST_NAME: Final = 100  # characters
SHORTEST_PASSWORD: Final = 12  # characters
LONGEST_PASSWORD: Final = 1000
#: Values of the groups claim that are kept, and characters of each.
MAX_GROUPS: Final = 500
LONGEST_GROUP: Final = 200
_LONGEST_BROWSER: Final = 300  # characters of a User-Agent header
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")

Method = Literal["password", "provider"]


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person who may sign in: with a password, or at an identity provider."""

    name: str  # username of the account whose rights the person has
    scope: Scope = Scope.RUN  # of sessions with a password
    created_at: float
    password: str | None = None  # Argon2 hash; None: signs in at a provider
    issuer: str | None = None  # URL of the provider
    subject: str | None = None  # id of the person at the provider
    groups_claim: tuple[str, ...] = ()  # values of the groups claim at the last sign-in
    last_sign_in_at: float | None = None

    @property
    def method(self) -> Method:
        return "provider" if self.password is None else "password"

    @property
    def token_id(self) -> str:
        """Id under which requests and predictions of all sessions of the person are counted."""
        return f"user-{self.name}"

    def groups(self, names: Mapping[str, str]) -> frozenset[str]:
        """Return the groups that the provider named. ``names`` maps values of the claim to groups."""
        return frozenset(names[value] for value in self.groups_claim if value in names)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A signed-in browser, without its secret."""

    id: str
    user: str
    digest: str  # of the secret
    created_at: float
    expires_at: float
    ended_at: float | None = None  # when the person signed out, or the session was revoked
    address: str  # IP address from which the person signed in
    browser: str  # User-Agent header
    last_used_at: float | None = None  # exact to a minute
    last_used_from: str | None = None  # IP address

    def active(self, now: float) -> bool:
        return self.ended_at is None and now < self.expires_at


def is_name(name: str) -> bool:
    """Return whether ``name`` can be the username of an account."""
    return len(name) <= LONGEST_NAME and _NAME.fullmatch(name) is not None


def name_from(claim: str) -> str | None:
    """Return the username for the value of a claim, such as anna-example-org for Anna@example.org.

    None if the value has no letter or digit. Different values may give the same username, so the caller
    must check that an account belongs to one person only.
    """
    name = re.sub(r"[^a-z0-9_-]+", "-", claim.lower())[:LONGEST_NAME].strip("-_")
    return name or None


def claim_values(value: object) -> tuple[str, ...]:
    """Return the values of a groups claim: a list of texts, or one text. Anything else is ignored."""
    values: Iterable[object] = value if isinstance(value, list) else [value]
    kept = (each for each in values if isinstance(each, str) and 0 < len(each) <= LONGEST_GROUP)
    return tuple(dict.fromkeys(kept))[:MAX_GROUPS]


def password_problem(password: str, name: str) -> str | None:
    """Return why a password of the account ``name`` is refused; None if it is not."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        return f"The password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
    if name in password.lower() and len(password) - len(name) < SHORTEST_PASSWORD // 2:
        return "The password must not be made of the username"
    if len(set(password)) < SHORTEST_PASSWORD // 3:
        return "The password must have more different characters"
    return None


def browser_name(header: str) -> str:
    """Return a User-Agent header in a form that can be stored and shown."""
    return "".join(each for each in header if each.isprintable())[:_LONGEST_BROWSER]


def new_secret() -> str:
    """Return the secret of a new session: the prefix, and 43 characters with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)
