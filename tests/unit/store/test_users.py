"""The tables of users and sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from appliance.domain.audit import AuditEvent
from appliance.domain.token import Scope
from appliance.domain.user import Session, User
from appliance.store import AuditFilter, Store
from tests.support.store_files import opened

pytestmark = pytest.mark.usefixtures("database")

ANNA = User(name="anna", scope=Scope.ADMIN, created_at=1.0, password="hash")
BEN = User(name="ben", created_at=1.0, issuer="https://id.example.org", subject="b1", groups_claim=("x", "y"))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await opened(tmp_path / "appliance.db")
    yield store
    await store.close()


def event(action: str) -> AuditEvent:
    return AuditEvent(action=action)


def session(id: str, at: float = 100.0, *, lasts: float = 50.0) -> Session:
    return Session(
        id=id, user="", digest=f"digest {id}", created_at=at, expires_at=at + lasts, address="a", browser="b"
    )


async def sign_in(store: Store, user: User, made: Session) -> User | None:
    return await store.users.sign_in(user, made, lambda known: AuditEvent(action="in", object=known.name))


async def actions(store: Store) -> list[str]:
    found = await store.audit.newest(limit=50, filters=AuditFilter())
    return [f"{each.action} {each.object}".strip() for each in reversed(found)]


async def test_an_account_has_one_user(store: Store) -> None:
    assert await store.users.add(ANNA, event("add"))
    assert not await store.users.add(structs.replace(ANNA, password="other"), event("add"))
    assert await store.users.find("anna") == ANNA
    assert await store.users.find("ben") is None
    assert await store.users.all() == [ANNA]
    assert await actions(store) == ["add"]


async def test_a_session_is_found_by_its_digest_and_listed_until_it_ends(store: Store) -> None:
    await store.users.add(ANNA, event("add"))
    assert await sign_in(store, ANNA, session("s1")) == ANNA
    await sign_in(store, ANNA, session("s2", 110.0))
    await sign_in(store, BEN, session("s3", 120.0))
    found = await store.users.find_session("digest s1")
    assert found is not None
    assert (found[0].id, found[0].user, found[1].last_sign_in_at) == ("s1", "anna", 110.0)
    assert [each.id for each in await store.users.sessions(None, 130.0)] == ["s3", "s2", "s1"]
    assert [each.id for each in await store.users.sessions("anna", 130.0)] == ["s2", "s1"]
    assert [each.id for each in await store.users.sessions("anna", 155.0)] == ["s2"]
    assert await store.users.end_session("s2", "ben", 130.0, event("end")) is None
    ended = await store.users.end_session("s2", "anna", 130.0, event("end"))
    assert ended is not None
    assert ended.ended_at == 130.0
    assert not ended.active(130.0)
    assert await store.users.end_session("s2", None, 131.0, event("end")) is None
    assert [each.id for each in await store.users.sessions("anna", 130.0)] == ["s1"]
    assert await actions(store) == ["add", "in anna", "in anna", "in ben", "end"]


async def test_a_person_of_a_provider_keeps_the_account_of_the_first_sign_in(store: Store) -> None:
    assert await sign_in(store, BEN, session("s1")) == BEN
    renamed = structs.replace(BEN, name="benjamin", groups_claim=("z",))
    stored = await sign_in(store, renamed, session("s2"))
    assert stored is not None
    assert stored.name == "ben"
    (user,) = await store.users.all()
    assert (user.name, user.groups_claim) == ("ben", ("z",))
    impostor = structs.replace(BEN, subject="b2")
    assert await sign_in(store, impostor, session("s3")) is None
    elsewhere = structs.replace(BEN, issuer="https://other.example.org")
    assert await sign_in(store, elsewhere, session("s4")) is None
    await store.users.add(ANNA, event("add"))
    assert await sign_in(store, structs.replace(BEN, name="anna", subject="b3"), session("s5")) is None
    assert {each.id for each in await store.users.sessions(None, 100.0)} == {"s1", "s2"}


async def test_another_password_ends_all_sessions(store: Store) -> None:
    await store.users.add(ANNA, event("add"))
    await sign_in(store, ANNA, session("s1"))
    assert await store.users.set_password("anna", "new", 120.0, event("password"))
    assert await store.users.sessions("anna", 120.0) == []
    assert await sign_in(store, ANNA, session("s2")) is None, "checked with the old password"
    await sign_in(store, BEN, session("s3"))
    assert not await store.users.set_password("ben", "new", 120.0, event("password"))
    assert not await store.users.set_password("nobody", "new", 120.0, event("password"))


async def test_a_removed_user_has_no_sessions_and_is_not_added_by_a_late_sign_in(store: Store) -> None:
    await store.users.add(ANNA, event("add"))
    await sign_in(store, ANNA, session("s1"))
    assert await store.users.remove("anna", event("remove"))
    assert not await store.users.remove("anna", event("remove"))
    assert await store.users.find_session("digest s1") is None
    assert await sign_in(store, ANNA, session("s2")) is None
    assert await store.users.all() == []


async def test_old_sessions_are_deleted_at_a_sign_in(store: Store) -> None:
    await store.users.add(ANNA, event("add"))
    await sign_in(store, ANNA, session("s1", 0.0))
    await sign_in(store, ANNA, session("s2", 29 * 86400.0))
    assert await store.users.find_session("digest s1") is not None
    await sign_in(store, ANNA, session("s3", 31 * 86400.0))
    assert await store.users.find_session("digest s1") is None
    assert await store.users.find_session("digest s2") is not None


async def test_a_new_hash_of_the_same_password_does_not_replace_a_changed_password(store: Store) -> None:
    await store.users.add(ANNA, event("add"))
    await store.users.set_password("anna", "changed", 100.0, event("password"))
    assert not await store.users.rehash("anna", "hash", "hash of the old password")
    assert await store.users.find("anna") == structs.replace(ANNA, password="changed")
    assert await store.users.rehash("anna", "changed", "new hash")
    assert await store.users.find("anna") == structs.replace(ANNA, password="new hash")


async def test_nobody_signs_in_to_an_account_that_is_erased(store: Store) -> None:
    carl = structs.replace(BEN, name="carl", subject="c1")
    await store.users.add(ANNA, event("add"))
    assert await sign_in(store, BEN, session("s1")) == BEN
    for account in ("anna", "ben", "carl"):
        await store.erasures.begin(account, AuditEvent(action="erase", object=account))
    renamed = structs.replace(BEN, name="benjamin")  # the account stays that of the first sign-in
    for person in (ANNA, renamed, carl):
        assert await sign_in(store, person, session("s2")) is None
        assert await store.users.is_erased(person)
    assert await store.users.find("carl") is None
    assert [each.id for each in await store.users.sessions(None, 101.0)] == ["s1"]
    for account in ("ben", "carl"):
        assert await store.erasures.remove_others(account) is not None
        await store.erasures.end(account)
    assert await sign_in(store, renamed, session("s3")) == renamed
    assert not await store.users.is_erased(renamed)
