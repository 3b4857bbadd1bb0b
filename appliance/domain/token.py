"""API tokens: made here, shown once, kept only as digests."""

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
    """The rights of a token; each scope includes those before it."""

    READ = "read"  # look at everything of its account
    RUN = "run"  # create and cancel predictions
    ADMIN = "admin"  # load and unload models; see every account's predictions, tokens and settings


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """The stored record of a token, without its secret. Times are Unix seconds."""

    id: str
    name: str  # for people
    owner: str  # username of the account whose predictions it makes and sees
    digest: str  # of the secret, which itself is nowhere
    created_at: float
    revoked_at: float | None = None
    scope: Scope = Scope.ADMIN
    prediction: str | None = None  # the running prediction that it was made for; such a token is not stored

    def may(self, needed: Scope) -> bool:
        """Whether its scope covers ``needed``."""
        ranks = list(Scope)
        return ranks.index(self.scope) >= ranks.index(needed)


class RunTokens:
    """Tokens with which a running prediction acts for its owner.

    They are made of the prediction's id and attempt and a key, so none is stored, and the next gateway knows
    them again. Whether the prediction still runs is for others to say.
    """

    def __init__(self, key: str) -> None:
        """``key`` is the appliance's own secret."""
        self._key = key.encode()

    def make(self, id: str, attempt: int) -> str:
        """The token of one attempt of a prediction."""
        code = hmac.digest(self._key, f"{id} {attempt}".encode(), "sha256")
        return f"{PREFIX}run_{id}_{attempt}_{base64.urlsafe_b64encode(code).decode().rstrip('=')}"

    def read(self, secret: str) -> tuple[str, int] | None:
        """The prediction and the attempt that a token of ours was made for."""
        match = _RUN.fullmatch(secret)
        if match is None or not hmac.compare_digest(self.make(match[1], int(match[2])), secret):
            return None
        return match[1], int(match[2])


def new_token() -> str:
    """A fresh secret: ``apl_`` and 40 characters that are safe in a URL, 240 bits."""
    return PREFIX + secrets.token_urlsafe(_SECRET_LENGTH * 6 // 8)[:_SECRET_LENGTH]


def new_id() -> str:
    """A fresh id of a token; it is no secret."""
    return secrets.token_hex(8)


def digest(secret: str) -> str:
    """Return the digest by which a secret is stored and looked up, 64 hex digits.

    A plain SHA-256 does: a secret is random, so there is nothing to guess with a dictionary.
    """
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def parse(header: str | None) -> str | None:
    """The secret in an ``Authorization`` header, with either scheme that Replicate's clients use."""
    match = _SCHEMES.fullmatch(header.strip()) if header else None
    secret = match[1].strip() if match else ""
    return secret or None
