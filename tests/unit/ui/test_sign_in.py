"""People sign in with passwords on the sign-in page, and see their sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.domain.audit import AuditEvent
from appliance.domain.token import Scope
from appliance.domain.user import User
from appliance.gateway.api import auth
from appliance.gateway.api.client_address import HEADER, signed
from appliance.gateway.sign_on import sign_on
from appliance.gateway.sign_on.passwords import make_hash
from appliance.ui import session
from appliance.ui.pages.sessions import browser_name
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.ui_client import Pages

HERE = {HEADER: signed("203.0.113.5"), "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}
FORM = {"username": "anna", "password": "correct horse", "next": "/usage"}


@pytest.fixture
async def pages(
    light_passwords: None, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Pages]:
    monkeypatch.setattr(session, "MEMORY", 0.0)
    monkeypatch.setattr(auth, "MEMORY", 0.0)
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def add(bench: Bench, name: str, scope: Scope = Scope.RUN) -> None:
    user = User(name=name, scope=scope, created_at=0.0, password=make_hash(FORM["password"]))
    await bench.store.users.add(user, AuditEvent(action="user.add"))


async def test_passwords_are_offered_once_there_are_users(pages: Pages, bench: Bench) -> None:
    async with pages.browser() as browser:
        assert 'name="password"' not in (await browser.get("/signin")).text
        await add(bench, "anna")
        page = (await browser.get("/signin?next=/usage")).text
        assert 'name="password"' in page
        assert 'name="token"' in page


async def test_a_password_opens_the_pages_until_the_person_signs_out(pages: Pages, bench: Bench) -> None:
    await add(bench, "anna")
    async with pages.browser() as browser:
        browser.headers.update(HERE)
        signed_in = await browser.post("/signin", data=FORM)
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/usage")
        cookie = signed_in.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "apl_session" not in cookie
        page = await browser.get("/usage")
        assert page.status_code == 200
        assert "Signed in with a password" in page.text
        assert "apl_session" not in page.text
        sessions = (await browser.get("/sessions")).text
        assert "Firefox, Linux" in sessions
        assert "203.0.113.5" in sessions
        assert "this browser" in sessions
        kept = dict(browser.cookies)
        assert (await browser.post("/signout")).headers["location"] == "/signin"
        browser.cookies.update(kept)
        assert (await browser.get("/usage")).headers["location"].startswith("/signin")
    assert await bench.store.users.sessions(None, 0.0) == []


async def test_a_wrong_password_is_refused_and_the_username_stays(pages: Pages, bench: Bench) -> None:
    await add(bench, "anna")
    async with pages.browser() as browser:
        browser.headers.update(HERE)
        for _ in range(sign_on.MAX_FROM_ADDRESS):
            wrong = await browser.post("/signin", data=FORM | {"password": "wrong horse"})
            assert (wrong.status_code, wrong.headers.get("set-cookie")) == (401, None)
        assert "The username or the password is wrong." in wrong.text
        assert 'value="anna"' in wrong.text
        assert "wrong horse" not in wrong.text
        refused = await browser.post("/signin", data=FORM)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "Too many wrong passwords" in refused.text


async def test_a_sign_in_makes_a_new_session_and_ends_the_one_before(pages: Pages, bench: Bench) -> None:
    await add(bench, "anna")
    await add(bench, "ben")
    async with pages.browser() as browser:
        browser.headers.update(HERE)
        await browser.post("/signin", data=FORM)
        first = dict(browser.cookies)
        await browser.post("/signin", data=FORM | {"username": "ben"})
        assert [each.user for each in await bench.store.users.sessions(None, 0.0)] == ["ben"]
        assert dict(browser.cookies) != first


async def test_an_operator_sees_the_sessions_of_all_and_revokes_them(pages: Pages, bench: Bench) -> None:
    await add(bench, "anna")
    await add(bench, "carol", Scope.ADMIN)
    async with pages.browser() as anna, pages.browser() as carol, pages.signed_in(SECRET) as other:
        for browser, name in ((anna, "anna"), (carol, "carol")):
            browser.headers.update(HERE)
            assert (await browser.post("/signin", data=FORM | {"username": name})).status_code == 303
        own = (await anna.get("/sessions/list")).text
        assert "carol" not in own
        assert "carol" in (await other.get("/sessions/list")).text
        (found,) = await bench.store.users.sessions("anna", 0.0)
        assert f'data-revoke="{found.id}"' in (await carol.get("/sessions/list")).text
        assert (await carol.delete(f"/_ui/api/admin/sessions/{found.id}")).status_code == 204
        assert (await anna.get("/sessions")).headers["location"].startswith("/signin")


async def test_scripts_of_pages_get_no_secret_of_a_session(pages: Pages, bench: Bench) -> None:
    await add(bench, "anna")
    async with pages.signed_in(SECRET) as browser:
        browser.headers.update(HERE)
        for path in ("/admin/sign-in/password", "/admin/sign-in/password/", "//admin/sign-in/password"):
            given = {"username": "anna", "password": FORM["password"]}
            reply = await browser.post(f"/_ui/api{path}", json=given)
            assert reply.status_code == 404, path
    assert await bench.store.users.sessions(None, 0.0) == []


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox, Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/140.0 Safari/537.36 Edg/140.0", "Edge, Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18 Safari/604", "Safari, iOS"),
        ("curl/8", "curl/8"),
        ("", ""),
    ],
)
def test_the_name_of_a_browser(header: str, name: str) -> None:
    assert browser_name(header) == name
