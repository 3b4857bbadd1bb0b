"""API tokens. A secret is shown once, when its token is made; only a digest of the secret is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Literal

import msgspec

from appliance.domain import access
from appliance.domain.access import PATTERN, Access, Right
from appliance.domain.errors import FieldProblem

PREFIX: Final = "apl_"
LONGEST_DESCRIPTION: Final = 500  # characters
MAX_LIMITS: Final = 50  # networks, and patterns of models
_LATEST: Final = 253402300799.0  # the year 9999, in Unix seconds
_SECRET_LENGTH: Final = 40
_RUN: Final = re.compile(r"apl_run_([0-9a-z]{26})_([0-9]{1,6})_([A-Za-z0-9_-]{43})")
_SCHEMES: Final = re.compile(r"(?i)(?:bearer|token)[ \t]+(.*)", re.DOTALL)


class Scope(StrEnum):
    """The rights of a token; each scope includes the rights of the scopes above it."""

    READ = "read"  # read everything of its account
    RUN = "run"  # create and cancel predictions
    ADMIN = "admin"  # load and unload models; see every account's predictions, tokens and settings


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """The stored record of a token, without its secret. Times are Unix seconds."""

    id: str
    name: str  # shown to people; not unique
    owner: str  # username of the account whose rights it has
    digest: str  # of the secret
    created_at: float
    revoked_at: float | None = None
    scope: Scope
    description: str = ""
    expires_at: float | None = None
    networks: tuple[str, ...] | None = None  # from which it may be used; None: from everywhere
    models: tuple[str, ...] | None = None  # patterns of the models that it may use; None: all
    last_used_at: float | None = None  # exact to a minute
    last_used_from: str | None = None  # IP address
    session: str | None = None  # id of the session that uses it; such a token is not stored
    signed_in_with: Literal["token", "password", "provider"] = "token"  # how its session began
    prediction: str | None = None  # id of the running prediction that uses it; such a token is not stored
    access: Access = Access(None)  # rights of its owner in models.yaml, limited to `models`; not stored

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    def valid(self, now: float) -> bool:
        return self.revoked_at is None and not self.expired(now)

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        return "revoked" if self.revoked_at is not None else "expired" if self.expired(now) else "valid"

    def may(self, needed: Scope) -> bool:
        ranks = list(Scope)
        return ranks.index(self.scope) >= ranks.index(needed)

    @property
    def sees_all(self) -> bool:
        """Return whether it may see the predictions and the usage of all accounts."""
        return self.may(Scope.ADMIN) and Right.SEE_ALL in self.access.rights

    @property
    def effective_scope(self) -> Scope:
        """Return the scope of the token, reduced to what the rights of its owner permit."""
        rights = self.access.rights
        if self.may(Scope.ADMIN) and Right.OPERATE in rights:
            return Scope.ADMIN
        return Scope.RUN if self.may(Scope.RUN) and Right.RUN in rights else Scope.READ


class RunTokens:
    """Make and check the tokens with which a running prediction calls the API on behalf of its owner.

    A token is an HMAC over the id and the attempt of the prediction. It is not stored, and stays valid after
    a restart of the gateway. The caller of ``read`` checks that the prediction still runs.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def make(self, id: str, attempt: int) -> str:
        code = hmac.digest(self._key, f"{id} {attempt}".encode(), "sha256")
        return f"{PREFIX}run_{id}_{attempt}_{base64.urlsafe_b64encode(code).decode().rstrip('=')}"

    def read(self, secret: str) -> tuple[str, int] | None:
        """Return the id and the attempt of the token's prediction; None if the token is forged."""
        match = _RUN.fullmatch(secret)
        if match is None or not hmac.compare_digest(self.make(match[1], int(match[2])), secret):
            return None
        return match[1], int(match[2])


def limits_problems(made: Token) -> list[FieldProblem]:
    """Return what is wrong with the description, expiry, networks and models of a new token."""
    problems = []
    if len(made.description) > LONGEST_DESCRIPTION or not made.description.isprintable():
        text = f"Must have at most {LONGEST_DESCRIPTION} characters, without control characters"
        problems.append(FieldProblem("format", "description", text))
    if made.expires_at is not None and not made.created_at < made.expires_at < _LATEST:
        problems.append(FieldProblem("number_gte", "expires_at", "Must be a time in the future"))
    for index, network in enumerate(made.networks or ()):
        if access.network(network) is None:
            text = f"{network!r} is no IP address or network such as 10.0.0.0/8"
            problems.append(FieldProblem("format", f"networks.{index}", text))
    for index, pattern in enumerate(made.models or ()):
        if not PATTERN.fullmatch(pattern):
            text = f"{pattern!r} is no model name or pattern such as owner/*"
            problems.append(FieldProblem("format", f"models.{index}", text))
    for field in ("networks", "models"):
        count = len(getattr(made, field) or ())
        if count > MAX_LIMITS or (count == 0 and getattr(made, field) is not None):
            text = f"Must have 1 to {MAX_LIMITS} items; leave it out for no limit"
            problems.append(FieldProblem("number_lte", field, text))
    if made.models is not None and made.may(Scope.ADMIN):
        text = "A token with the scope admin can make tokens without limits: choose the scope run or read"
        problems.append(FieldProblem("conflict", "models", text))
    return problems


def recorded(made: Token) -> dict[str, object]:
    """Return what the audit log records of a new token."""
    expires_at = made.expires_at
    return {
        "name": made.name,
        "owner": made.owner,
        "scope": made.scope.value,
        "expires_at": None if expires_at is None else datetime.fromtimestamp(expires_at, UTC).isoformat(),
        "networks": made.networks,
        "models": made.models,
    }


def new_token() -> str:
    """Return a new random secret: ``apl_`` and 40 URL-safe characters with 240 random bits."""
    return PREFIX + secrets.token_urlsafe(_SECRET_LENGTH * 6 // 8)[:_SECRET_LENGTH]


def new_id() -> str:
    return secrets.token_hex(8)


def digest(secret: str) -> str:
    """Return the digest under which a secret is stored and looked up: 64 hex digits.

    Plain SHA-256 is enough, because a random secret cannot be guessed from a dictionary.
    """
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def parse(header: str | None) -> str | None:
    """Return the secret in an ``Authorization`` header of the scheme Bearer or Token; None if it has none."""
    match = _SCHEMES.fullmatch(header.strip()) if header else None
    secret = match[1].strip() if match else ""
    return secret or None
