"""Hashes of passwords, with Argon2id and the parameters of RFC 9106 for servers with little memory."""

from __future__ import annotations

import asyncio
from typing import Final

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

#: Passwords that are checked at the same time; each takes 64 MiB of main memory and four threads.
_AT_ONCE: Final = 2
_HASHER: Final = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)


def make_hash(password: str) -> str:
    return _HASHER.hash(password)


class Passwords:
    """Checks passwords outside of the event loop, only a few at a time."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._other: str | None = None

    async def matches(self, hash: str | None, password: str) -> bool:
        """Return whether ``hash`` was made of ``password``.

        Without ``hash`` the result is False, after the same time: it must not reveal which users exist.
        """
        async with self._slots:
            return await asyncio.to_thread(self._matches, hash, password)

    def _matches(self, hash: str | None, password: str) -> bool:
        if self._other is None:
            self._other = make_hash("the password of nobody")
        try:
            _HASHER.verify(hash or self._other, password)
        except (VerificationError, InvalidHashError):
            return False
        return hash is not None

    async def rehash(self, hash: str, password: str) -> str | None:
        """Return a hash with the present parameters; None if ``hash`` has them."""
        if not _HASHER.check_needs_rehash(hash):
            return None
        async with self._slots:
            return await asyncio.to_thread(make_hash, password)
