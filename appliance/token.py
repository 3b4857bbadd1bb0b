"""API tokens: made here, shown once, kept only as digests."""

from __future__ import annotations

import hashlib
import re
import secrets
from enum import StrEnum
from typing import Final

import msgspec

PREFIX: Final = "apl_"
_SECRET_LENGTH: Final = 40
_SCHEMES: Final = re.compile(r"(?i)(?:bearer|token)[ \t]+(.*)", re.DOTALL)


class Scope(StrEnum):
    """What a token may do; each may do what the ones before it may."""

    READ = "read"  # look at everything of its account
    RUN = "run"  # create and cancel predictions
    ADMIN = "admin"  # load and unload models


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a token. Times are Unix seconds."""

    id: str
    name: str  # for people
    owner: str  # username of the account whose predictions it makes and sees
    digest: str  # of the secret, which itself is nowhere
    created_at: float
    revoked_at: float | None = None
    scope: Scope = Scope.ADMIN

    def may(self, needed: Scope) -> bool:
        """Whether its scope covers ``needed``."""
        ranks = list(Scope)
        return ranks.index(self.scope) >= ranks.index(needed)


def new_token() -> str:
    """A fresh secret: ``apl_`` and 40 characters that are safe in a URL, 240 bits."""
    return PREFIX + secrets.token_urlsafe(_SECRET_LENGTH * 6 // 8)[:_SECRET_LENGTH]


def new_id() -> str:
    """A fresh id of a token; it is no secret."""
    return secrets.token_hex(8)


def digest(secret: str) -> str:
    """What a secret is stored as and found by, 64 hex digits.

    A plain SHA-256 does: a secret is random, so there is nothing to guess with a dictionary.
    """
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def parse(header: str | None) -> str | None:
    """The secret in an ``Authorization`` header, with either scheme that Replicate's clients use."""
    match = _SCHEMES.fullmatch(header.strip()) if header else None
    secret = match[1].strip() if match else ""
    return secret or None
