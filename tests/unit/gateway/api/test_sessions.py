"""People sign in with passwords; their sessions are listed and revoked."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from appliance.domain.access import Group, Policy, Right
from appliance.domain.audit import AuditEvent
from appliance.domain.token import Scope
from appliance.domain.user import User
from appliance.gateway.api import auth
from appliance.gateway.api.client_address import HEADER, signed
from appliance.gateway.sign_on import sign_on
from appliance.gateway.sign_on.passwords import Passwords, make_hash
from appliance.store import AuditFilter
from tests.support.api_client import Api
from tests.support.engine_bench import Bench

PASSWORD = "correct horse"
HERE = {HEADER: signed("203.0.113.5")}


@pytest.fixture(autouse=True)
async def people(light_passwords: None, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MEMORY", 0.0)
    for name, scope in {"anna": Scope.RUN, "carol": Scope.ADMIN}.items():
        user = User(name=name, scope=scope, created_at=0.0, password=make_hash(PASSWORD))
        await bench.store.users.add(user, AuditEvent(action="user.add"))


async def sign_in(
    api: Api, name: str, password: str = PASSWORD, headers: dict[str, str] = HERE
) -> httpx.Response:
    body = {"username": name, "password": password, "browser": "Firefox on Linux"}
    return await api.post("/admin/sign-in/password", json=body, headers=headers)


async def signed_in(api: Api, name: str) -> Api:
    reply = await sign_in(api, name)
    assert reply.status_code == 201, reply.text
    return Api(api.services, reply.json()["token"])


async def records(bench: Bench) -> list[dict[str, Any]]:
    found = await bench.store.audit.newest(limit=50, filters=AuditFilter())
    return [{"action": each.action, "owner": each.owner, "outcome": each.outcome} for each in reversed(found)]


async def test_a_password_gives_a_session_with_the_scope_of_the_person(api: Api, bench: Bench) -> None:
    reply = await sign_in(api, " Anna ")
    made = reply.json()
    assert reply.status_code == 201
    assert made["token"].startswith("apl_session_")
    assert (made["username"], made["address"], made["browser"]) == ("anna", "203.0.113.5", "Firefox on Linux")
    async with Api(api.services, made["token"]) as anna:
        me = (await anna.get("/admin/me")).json()
        assert (me["username"], me["scope"], me["signed_in_with"]) == ("anna", "run", "password")
        await anna.create(text="hello")
        (shown,) = (await anna.get("/admin/predictions")).json()["results"]
        assert (shown["token"], shown["token_name"]) == ("user-anna", "anna (UI)")
        assert (await anna.get("/admin/tokens")).status_code == 403
    async with await signed_in(api, "carol") as carol:
        assert (await carol.get("/admin/tokens")).status_code == 200
    (record, *_) = await bench.store.audit.newest(limit=50, filters=AuditFilter(action="session"))
    assert (record.action, record.owner, record.token) == ("session.sign_in", "carol", record.object)
    stored = bench.store.users.find_session
    assert await stored(made["token"]) is None, "only the digest is stored"


@pytest.mark.parametrize(
    ("name", "password"), [("anna", "wrong horse"), ("nobody", PASSWORD), ("", PASSWORD), ("anna", "")]
)
async def test_wrong_sign_ins_get_the_same_response(api: Api, bench: Bench, name: str, password: str) -> None:
    reply = await sign_in(api, name, password)
    assert (reply.status_code, reply.json()["detail"]) == (401, "The username or the password is wrong.")
    known = name == "anna"
    expected = {"action": "session.sign_in", "owner": "anna" if known else None, "outcome": "denied"}
    assert (await records(bench))[-1] == expected
    assert "horse" not in str(await bench.store.audit.newest(limit=50, filters=AuditFilter()))


async def test_only_the_ui_may_sign_people_in(api: Api) -> None:
    for headers in ({}, {HEADER: "203.0.113.5 0123"}, {HEADER: "203.0.113.5"}):
        reply = await sign_in(api, "anna", headers=headers)
        assert (reply.status_code, "token" in reply.json()) == (403, False)


async def test_many_wrong_passwords_must_wait_even_with_the_right_one(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(sign_on.MAX_FROM_ADDRESS):
        assert (await sign_in(api, "anna", "wrong")).status_code == 401
    refused = await sign_in(api, "anna")
    assert refused.status_code == 429
    recorded = (await records(bench))[-1]
    assert recorded == {"action": "session.sign_in", "owner": None, "outcome": "failed"}
    assert int(refused.headers["retry-after"]) >= 1
    assert (await sign_in(api, "carol")).status_code == 201, "another account"
    there = {HEADER: signed("203.0.113.6")}
    assert (await sign_in(api, "anna", headers=there)).status_code == 201, "another address"
    at = time.monotonic() + 301
    monkeypatch.setattr(time, "monotonic", lambda: at)
    assert (await sign_in(api, "anna")).status_code == 201


async def test_many_addresses_cannot_guess_one_password(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: object, hash: str | None, password: str) -> bool:
        return False

    monkeypatch.setattr("appliance.gateway.sign_on.passwords.Passwords.matches", never)
    for number in range(sign_on.MAX_OF_ACCOUNT):
        address = {HEADER: signed(f"2001:db8:{number}::1")}
        assert (await sign_in(api, "anna", headers=address)).status_code == 401
    assert (await sign_in(api, "anna", headers={HEADER: signed("2001:db8:99::1")})).status_code == 429


async def test_right_passwords_are_not_counted(api: Api) -> None:
    for _ in range(sign_on.MAX_FROM_ADDRESS + 1):
        assert (await sign_in(api, "anna")).status_code == 201


async def test_one_sees_and_revokes_own_sessions_and_an_operator_all(api: Api, bench: Bench) -> None:
    async with await signed_in(api, "anna") as anna, await signed_in(api, "carol") as carol:
        other = (await sign_in(api, "anna")).json()
        (second, first) = (await anna.get("/admin/sessions")).json()["results"]
        assert (second["id"], second["current"], first["current"]) == (other["id"], False, True)
        assert "token" not in first
        seen = (await carol.get("/admin/sessions")).json()["results"]
        assert [each["username"] for each in seen] == ["anna", "carol", "anna"]
        hers = next(each["id"] for each in seen if each["username"] == "carol")
        assert (await anna.delete(f"/admin/sessions/{hers}")).status_code == 404
        assert (await anna.delete(f"/admin/sessions/{other['id']}")).status_code == 204
        async with Api(api.services, other["token"]) as revoked:
            refused = await revoked.get("/admin/me")
            assert (refused.status_code, refused.json()["detail"]) == (
                401,
                "This session has ended: sign in again.",
            )
        assert (await carol.delete(f"/admin/sessions/{first['id']}")).status_code == 204
        assert (await anna.get("/admin/me")).status_code == 401
        assert (await carol.get("/admin/me")).status_code == 200
    acts = [each for each in await records(bench) if each["action"] == "session.revoke"]
    assert [(each["owner"], each["outcome"]) for each in acts] == [
        ("anna", "failed"),
        ("anna", "succeeded"),
        ("carol", "succeeded"),
    ]


async def test_signing_out_ends_the_session(api: Api, bench: Bench) -> None:
    async with await signed_in(api, "anna") as anna:
        assert (await anna.post("/admin/signouts")).status_code == 204
        assert (await anna.get("/admin/me")).status_code == 401
    assert (await records(bench))[-2] == {
        "action": "session.sign_out",
        "owner": "anna",
        "outcome": "succeeded",
    }


async def test_a_session_ends_after_its_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await signed_in(api, "anna") as anna:
        at = time.time() + 12 * 3600 + 1
        monkeypatch.setattr("appliance.gateway.api.auth.time.time", lambda: at)
        assert (await anna.get("/admin/me")).status_code == 401


async def test_sessions_end_when_passwords_are_switched_off(api: Api) -> None:
    services = api.services
    async with await signed_in(api, "anna") as anna:
        assert (await api.get("/admin/sign-in")).json() == {"passwords": True, "provider": None}
        sign_on = services.config.sign_on.model_copy(update={"passwords": False})
        services.configure(services.config.model_copy(update={"sign_on": sign_on}))
        assert (await anna.get("/admin/me")).status_code == 401
        assert (await api.get("/admin/sign-in")).json() == {"passwords": False, "provider": None}
        assert (await sign_in(api, "anna")).status_code == 401


async def test_a_session_has_the_rights_of_its_account(api: Api) -> None:
    vision = Group("vision", frozenset({"carol"}), ("vision/*",), frozenset({Right.RUN}))
    api.services.auth.apply(Policy([vision], None, "me"))
    async with await signed_in(api, "carol") as carol:
        assert (await carol.get("/admin/me")).json()["scope"] == "run"
        assert (await carol.get("/v1/models")).json()["results"] == []
        assert (await carol.get("/admin/tokens")).status_code == 403


async def test_a_token_with_the_scope_read_revokes_no_session(api: Api, bench: Bench) -> None:
    made = (await sign_in(api, "anna")).json()
    secret = (await api.post("/admin/tokens", json={"name": "x", "scope": "read", "owner": "anna"})).json()
    async with Api(api.services, secret["token"]) as reader:
        assert len((await reader.get("/admin/sessions")).json()["results"]) == 1
        assert (await reader.delete(f"/admin/sessions/{made['id']}")).status_code == 403


async def test_nobody_signs_in_while_the_data_is_erased(api: Api, bench: Bench) -> None:
    await bench.store.erasures.begin("anna", AuditEvent(action="account.erase", object="anna"))
    reply = await sign_in(api, "anna")
    assert (reply.status_code, reply.json()["detail"]) == (
        401,
        "The data of your account is being erased: sign in again when the erasure has ended.",
    )
    assert await bench.store.users.sessions("anna", time.time()) == []
    wrong = await sign_in(api, "anna", "wrong horse")
    assert wrong.json()["detail"] == "The username or the password is wrong."


async def test_an_old_password_is_not_stored_again(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is changed after the old one was checked, before the hash of the old one is renewed."""
    changed = make_hash("another horse")

    async def rehash(_passwords: object, _known: str, password: str) -> str:
        act = AuditEvent(action="user.password")
        await bench.store.users.set_password("anna", changed, time.time(), act)
        return make_hash(password)

    monkeypatch.setattr(Passwords, "rehash", rehash)
    reply = await sign_in(api, "anna")
    assert (reply.status_code, reply.json()["detail"]) == (401, "The username or the password is wrong.")
    monkeypatch.undo()
    user = await bench.store.users.find("anna")
    assert user is not None
    assert user.password == changed
    assert await bench.store.users.sessions("anna", time.time()) == []
