"""API tokens. A secret is shown once, when its token is made; only a digest of the secret is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from enum import StrEnum
from typing import Final

import msgspec

PREFIX: Final = "apl_"
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
    prediction: str | None = None  # id of the running prediction that uses it; such a token is not stored

    def may(self, needed: Scope) -> bool:
        ranks = list(Scope)
        return ranks.index(self.scope) >= ranks.index(needed)


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
