"""Passwords are hashed with the parameters of RFC 9106, and checked."""

from __future__ import annotations

import argon2
import pytest

from appliance.gateway.sign_on.passwords import Passwords, make_hash

#: The second recommended option of section 4: 64 MiB of memory, 3 passes, 4 lanes.
PARAMETERS = "$argon2id$v=19$m=65536,t=3,p=4$"
OLD = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("correct horse")


async def test_a_password_is_hashed_and_checked_with_the_parameters_of_rfc_9106() -> None:
    passwords, hash = Passwords(), make_hash("correct horse")
    assert hash.startswith(PARAMETERS)
    assert await passwords.matches(hash, "correct horse")
    assert await passwords.rehash(hash, "correct horse") is None


async def test_a_hash_with_other_parameters_is_renewed() -> None:
    passwords = Passwords()
    assert await passwords.matches(OLD, "correct horse")
    renewed = await passwords.rehash(OLD, "correct horse")
    assert renewed is not None
    assert renewed.startswith(PARAMETERS)


@pytest.mark.usefixtures("light_passwords")
async def test_other_passwords_and_other_hashes_do_not_match() -> None:
    passwords = Passwords()
    assert not await passwords.matches(OLD, "wrong horse")
    assert not await passwords.matches(None, "correct horse")
    assert not await passwords.matches(None, "the password of nobody")
    assert not await passwords.matches("$argon2id$unreadable", "correct horse")
