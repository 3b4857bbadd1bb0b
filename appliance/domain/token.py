"""API tokens: a secret is shown once, when it is made, and stored only as a digest."""

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

    READ = "read"  # read everything of its account
    RUN = "run"  # create and cancel predictions
    ADMIN = "admin"  # load and unload models; see every account's predictions, tokens and settings


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """The stored record of a token, without its secret. Times are Unix seconds."""

    id: str
    name: str  # for people
    owner: str  # username of the account that it acts for
    digest: str  # of the secret
    created_at: float
    revoked_at: float | None = None
    scope: Scope
    prediction: str | None = None  # the running prediction that it was made for; such a token is not stored

    def may(self, needed: Scope) -> bool:
        """Return whether the scope of this token includes ``needed``."""
        ranks = list(Scope)
        return ranks.index(self.scope) >= ranks.index(needed)


class RunTokens:
    """Tokens with which a running prediction makes requests for its owner.

    A token is computed from a key and the id and attempt of the prediction. So it is not stored, and is valid
    after a restart of the gateway. The caller checks that the prediction still runs.
    """

    def __init__(self, key: str) -> None:
        """``key`` is a secret of this appliance."""
        self._key = key.encode()

    def make(self, id: str, attempt: int) -> str:
        code = hmac.digest(self._key, f"{id} {attempt}".encode(), "sha256")
        return f"{PREFIX}run_{id}_{attempt}_{base64.urlsafe_b64encode(code).decode().rstrip('=')}"

    def read(self, secret: str) -> tuple[str, int] | None:
        """Return the id and the attempt of the prediction that the token is for; None if it is forged."""
        match = _RUN.fullmatch(secret)
        if match is None or not hmac.compare_digest(self.make(match[1], int(match[2])), secret):
            return None
        return match[1], int(match[2])


def new_token() -> str:
    """Return a new random secret: ``apl_`` and 40 URL-safe characters, which have 240 bits."""
    return PREFIX + secrets.token_urlsafe(_SECRET_LENGTH * 6 // 8)[:_SECRET_LENGTH]


def new_id() -> str:
    """Return a new random id of a token, which is not secret."""
    return secrets.token_hex(8)


def digest(secret: str) -> str:
    """Return the digest by which a secret is stored and looked up, 64 hex digits.

    A plain SHA-256 is enough: a random secret cannot be found with a dictionary.
    """
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def parse(header: str | None) -> str | None:
    """Return the secret in an ``Authorization`` header of scheme Bearer or Token; None without one."""
    match = _SCHEMES.fullmatch(header.strip()) if header else None
    secret = match[1].strip() if match else ""
    return secret or None
