"""The paths of the UI: sign-in, sessions, pages and their headers."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from appliance.domain import token
from appliance.domain.token import Scope, Token
from appliance.gateway.api import auth
from appliance.ui import session
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.ui_client import Pages


@pytest.fixture
async def pages(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pages]:
    monkeypatch.setattr(session, "MEMORY", 0.0)
    monkeypatch.setattr(auth, "MEMORY", 0.0)
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def test_nothing_is_shown_to_who_is_not_signed_in(pages: Pages) -> None:
    async with pages.browser() as browser:
        for path in (
            "/explore",
            "/test/echo",
            "/test/echo/state",
            "/test/echo/runs",
            "/test/echo/panels/readme",
            "/nothing",
        ):
            page = await browser.get(path)
            assert page.status_code == 303, path
            assert page.headers["location"].startswith("/signin?next=%2F"), path
            for method in ("GET", "POST"):
                reply = await browser.request(method, path, headers={"Accept": "*/*"})
                assert (reply.status_code, reply.json()) == (401, {"detail": "Sign in at /signin."}), path


async def test_a_token_opens_the_pages_until_it_is_revoked(pages: Pages, bench: Bench) -> None:
    async with pages.browser() as browser:
        wrong = await browser.post("/signin", data={"token": "wrong", "next": "/explore"})
        assert (wrong.status_code, wrong.headers.get("set-cookie")) == (401, None)
        assert "does not know this token" in wrong.text
        assert 'value="/explore"' in wrong.text
        right = await browser.post("/signin", data={"token": f" {SECRET} ", "next": "/test/echo?x=1"})
        assert (right.status_code, right.headers["location"]) == (303, "/test/echo?x=1")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert "Secure" not in cookie
        assert SECRET not in cookie
        page = await browser.get("/explore")
        assert page.status_code == 200
        assert "Our &lt;models&gt;" in page.text
        assert "My Company" in page.text
        assert re.search(r"<body[^>]*>\s*<header class=\"frame\"", page.text)
        assert SECRET not in page.text
        assert token.digest(SECRET) not in page.text
        await bench.store.revoke_token("first")
        assert (await browser.get("/explore")).headers["location"] == "/signin?next=%2Fexplore"
        reply = await browser.get("/test/echo/state", headers={"Accept": "*/*"})
        assert reply.status_code == 401


async def test_signing_out_takes_the_cookie_away(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        assert (await browser.get("/")).headers["location"] == "/explore"
        assert (await browser.get("/signout")).headers["location"] == "/"
        assert (await browser.get("/explore")).status_code == 200  # a link signs nobody out
        assert (await browser.post("/signout")).headers["location"] == "/signin"
        assert (await browser.get("/explore")).status_code == 303


async def test_a_cookie_is_good_for_one_appliance_one_week_and_as_it_was_made(
    pages: Pages, api: Api, tmp_path: Path
) -> None:
    async with pages.browser("https") as browser:
        await browser.post("/signin", data={"token": SECRET})
        assert (await browser.get("/explore")).status_code == 200
        (cookie,) = browser.cookies.jar
        assert cookie.secure
        assert cookie.expires is not None
        assert cookie.expires - time.time() <= session.LIFETIME
        encrypted = cookie.value or ""
    (tmp_path / "other").mkdir()
    other = Pages(api, tmp_path / "other")
    assert other.sessions.cookie != pages.sessions.cookie
    key = (tmp_path / "ui.key").read_bytes()
    stale = Fernet(key).encrypt_at_time(SECRET.encode(), int(time.time()) - session.LIFETIME - 1).decode()
    for value in (encrypted[:-2], encrypted.swapcase(), "", "ü", stale, SECRET):
        async with pages.browser() as browser:
            headers = [(b"cookie", f"{pages.sessions.cookie}={value}".encode()), (b"accept", b"text/html")]
            assert (await browser.get("/explore", headers=headers)).status_code == 303, value
    async with other.browser() as browser:
        browser.cookies.set(other.sessions.cookie, encrypted)
        assert (await browser.get("/explore")).status_code == 303
    await other.server.close()


def test_the_key_is_made_once_and_for_its_owner_alone(pages: Pages, tmp_path: Path) -> None:
    file = tmp_path / "ui.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_bytes()
    assert session.Sessions(pages.api, file).cookie == pages.sessions.cookie
    assert file.read_bytes() == key


async def test_signing_in_leads_nowhere_else(pages: Pages) -> None:
    elsewhere = (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/a\nb",
        "javascript:alert(1)",
        "",
    )
    async with pages.browser() as browser:
        for then in elsewhere:
            reply = await browser.post("/signin", data={"token": SECRET, "next": then})
            assert reply.headers["location"] == "/", then
        shown = await browser.get("/signin", params={"next": '/"><script>alert(1)</script>'})
        assert "<script" not in shown.text


async def test_other_sites_can_cause_nothing(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        for path in ("/signin", "/signout", "/test/echo/code"):
            reply = await browser.post(path, headers={"Origin": "http://models.example.org:9000"})
            assert reply.status_code == 403, path
        assert (await browser.get("/explore")).status_code == 200


async def test_a_page_comes_with_a_policy_that_runs_no_scripts_but_its_own(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/test/echo")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["cache-control"] == "no-store"
        scripts = re.findall(r"<script[^>]*>", page.text)
        assert all('src="./_ui/static/' in each or "application/json" in each for each in scripts)
        script = re.search(r'src="\.(/_ui/static/[^"]+/model\.js)"', page.text)
        assert script is not None
        loaded = await browser.get(script[1])
        assert loaded.status_code == 200
        assert "immutable" in loaded.headers["cache-control"]


async def test_pages_of_models_and_what_is_not_there(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/test/echo")
        assert page.status_code == 200
        assert "test/echo" in page.text
        for path in ("/test/nothing", "/nothing", "/test/echo/nothing/x"):
            missing = await browser.get(path)
            assert missing.status_code == 404, path


async def test_a_version_has_a_page_of_its_own(pages: Pages, bench: Bench) -> None:
    async with pages.signed_in(SECRET) as browser:
        path = f"/test/echo/versions/{bench.echo.version}"
        page = await browser.get(path)
        assert page.status_code == 200
        assert f"echo:{bench.echo.version[:8]}" in page.text
        assert (await browser.get(f"/test/echo/versions/{'0' * 64}")).status_code == 404
        assert (await browser.get("/test/echo/versions/latest")).status_code == 404


async def test_a_private_model_has_no_page_for_others(pages: Pages, api: Api) -> None:
    private = {"owner": "me", "name": "private", "visibility": "private", "hardware": "cpu"}
    assert (await api.post("/v1/models", json=private)).status_code == 201
    async with pages.signed_in(SECRET) as mine, pages.signed_in("other") as others:
        assert "no version yet" in (await mine.get("/me/private")).text
        assert (await mine.get("/me/private/state")).status_code == 200
        for path in ("/me/private", "/me/private/state", "/me/private/runs", "/me/private/panels/readme"):
            assert (await others.get(path)).status_code == 404, path


async def test_what_a_token_may_not_do_is_said_on_top(pages: Pages, bench: Bench) -> None:
    for scope in Scope:
        await bench.store.add_token(
            Token(
                id=scope, name="<b>x</b>", owner="me", digest=token.digest(scope), created_at=0, scope=scope
            )
        )
    said = {Scope.READ: "can only look", Scope.RUN: "cannot change the appliance"}
    for scope in Scope:
        async with pages.signed_in(scope) as browser:
            page = (await browser.get("/explore")).text
            assert "&lt;b&gt;x&lt;/b&gt;" in page
            for other, words in said.items():
                assert (words in page) is (other is scope)


async def test_paths_of_nothing_are_clear_refusals(pages: Pages) -> None:
    paths = (
        "/_ui/static/..%2f..%2fx",
        "/test/echo/panels/%00",
        "/test/echo/panels/nothing",
        "/test/echo/%00",
        "/assets/nothing.js",
        *(f"/{start}{'a' * 9000}" for start in ("", "assets/", "built/", "built/static/", "test/")),
    )
    async with pages.browser() as stranger, pages.signed_in(SECRET) as browser:
        for client in (stranger, browser):
            for method in ("GET", "HEAD", "POST", "QUERY", "PROPFIND"):
                for path in paths:
                    reply = await client.request(method, path, headers={"accept": "*/*"})
                    assert 400 <= reply.status_code < 500, (method, path)
                    assert method == "HEAD" or reply.json()["detail"], (method, path)


async def test_forms_of_nothing_are_clear_refusals(pages: Pages) -> None:
    plain = "application/x-www-form-urlencoded"
    for kind, body, status in (
        ("multipart/form-data; boundary=", b"abc", 401),
        ("multipart/form-data", b"abc", 401),
        (plain, b"token=x&" * 20, 400),
        (plain, b"token=\xff", 400),
        (plain, b"token=" + b"x" * 70_000, 413),
    ):
        async with pages.signed_in(SECRET) as browser:
            headers = {"content-type": kind, "accept": "*/*"}
            reply = await browser.post("/signin", content=body, headers=headers)
        assert reply.status_code == status, (kind, reply.text)
        assert status == 401 or reply.json()["detail"], kind
