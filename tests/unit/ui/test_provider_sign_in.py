"""People sign in at an identity provider, through the pages and routes of the appliance."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.fernet import Fernet

from appliance.config import Config
from appliance.domain.failed_attempts import MOST
from appliance.gateway.api import auth
from appliance.gateway.api.client_address import HEADER, signed
from appliance.gateway.sign_on import SignOn
from appliance.store import AuditFilter
from appliance.ui import session
from tests.support.api_client import CONFIG, Api
from tests.support.engine_bench import Bench
from tests.support.identity_provider import ISSUER, IdentityProvider
from tests.support.ui_client import BASE, Pages

OIDC = {
    "issuer": ISSUER,
    "client_id": "appliance",
    "client_secret": "a secret",
    "name": "Example ID",
    "groups_claim": "groups",
    "groups": {"/ml": "vision", "/ops": "operators"},
    "scope": "admin",
}
ACCESS = {
    "groups": {
        "vision": {"members": [], "models": ["test/echo"], "may": ["run"]},
        "operators": {"members": [], "models": ["*"], "may": ["run", "operate", "see-all"]},
    }
}


class Site:
    """The UI of an appliance with an identity provider."""

    def __init__(self, api: Api, bench: Bench, pages: Pages, provider: IdentityProvider) -> None:
        self.bench = bench
        self.pages = pages
        self.provider = provider
        self._api = api

    def configure(self, **changes: Any) -> None:
        fields = CONFIG.model_dump()
        fields["server"] |= {"public_url": BASE}
        fields |= {"access": ACCESS, "sign_on": {"oidc": {**OIDC, **changes}}}
        services = self._api.services
        services.configure(Config.model_validate(fields))

    def browser(self) -> httpx.AsyncClient:
        browser = self.pages.browser()
        browser.headers[HEADER] = signed("203.0.113.5")
        return browser

    async def begin(self, browser: httpx.AsyncClient, then: str = "/usage") -> str:
        """Return the URL of the provider to which the sign-in page leads."""
        page = (await browser.get("/signin", params={"next": then})).text
        link = re.search(r'class="provider" href="\.([^"]+)"', page)
        assert link is not None
        assert "Sign in with Example ID" in page
        reply = await browser.get(unescape(link[1]))
        assert reply.status_code == 303
        return reply.headers["location"]

    async def sign_in(self, browser: httpx.AsyncClient) -> httpx.Response:
        query = self.provider.sign_in(await self.begin(browser))
        return await browser.get("/signin/callback", params=query)

    @asynccontextmanager
    async def signed_in(self) -> AsyncIterator[httpx.AsyncClient]:
        async with self.browser() as browser:
            reply = await self.sign_in(browser)
            assert (reply.status_code, reply.headers["location"]) == (303, "/usage"), reply.text
            yield browser


@pytest.fixture
async def site(
    api: Api, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setattr(session, "MEMORY", 0.0)
    monkeypatch.setattr(auth, "MEMORY", 0.0)
    provider = IdentityProvider()
    services = api.services
    services.sign_on = SignOn(bench.store.users, CONFIG, Fernet.generate_key(), provider)
    pages = Pages(api, tmp_path)
    made = Site(api, bench, pages, provider)
    made.configure()
    yield made
    await pages.server.close()


async def me(browser: httpx.AsyncClient) -> tuple[str, str]:
    found = (await browser.get("/_ui/api/admin/me")).json()
    return found["username"], found["scope"]


async def test_a_person_signs_in_with_the_groups_of_the_claim(site: Site) -> None:
    async with site.signed_in() as browser:
        assert await me(browser) == ("anna", "run")
        assert "Signed in at the identity provider" in (await browser.get("/usage")).text
        assert (await browser.get("/settings")).status_code == 404
        listed = (await browser.get("/_ui/api/v1/models")).json()["results"]
        assert [model["name"] for model in listed] == ["echo"]
    (record,) = await site.bench.store.audit.newest(limit=5, filters=AuditFilter(action="session"))
    assert (record.owner, record.address) == ("anna", "203.0.113.5")
    assert record.after == {"signed_in_with": "provider", "groups_claim": ["/ml"]}


async def test_other_groups_apply_from_the_next_sign_in(site: Site) -> None:
    async with site.signed_in() as first:
        site.provider.person["groups"] = ["/ops", "/unknown"]
        assert await me(first) == ("anna", "run")
        async with site.signed_in() as second:
            assert await me(second) == ("anna", "admin")
            assert (await second.get("/settings")).status_code == 200
            site.configure(groups={"/ops": "vision"})
            assert await me(second) == ("anna", "run"), "the config maps the group to another one"
        site.provider.person["groups"] = []
        async with site.signed_in() as third:
            assert await me(third) == ("anna", "read")


async def test_a_callback_works_once_and_only_in_the_browser_that_began(site: Site) -> None:
    async with site.browser() as browser, site.browser() as other:
        query = site.provider.sign_in(await site.begin(browser))
        stolen = await other.get("/signin/callback", params=query)
        assert stolen.status_code == 401
        assert "did not begin in this browser" in stolen.text
        await site.begin(other)
        crossed = await other.get("/signin/callback", params=query)
        assert crossed.status_code == 401
        assert "belongs to another sign-in" in crossed.text
        cookies = dict(browser.cookies)
        assert (await browser.get("/signin/callback", params=query)).status_code == 303
        again = await browser.get("/signin/callback", params=query)
        assert (again.status_code, "did not begin" in again.text) == (401, True)
        other.cookies.update(cookies)
        replayed = await other.get("/signin/callback", params=query)
        assert replayed.status_code == 401
        assert "finished already" in replayed.text
        assert site.provider.requests.count("/token") == 1
    assert len(await site.bench.store.users.sessions(None, 0.0)) == 1


async def test_refusals_of_the_provider_are_shown(site: Site) -> None:
    async with site.browser() as browser:
        await site.begin(browser)
        refused = await browser.get(
            "/signin/callback", params={"error": "access_denied<b>", "error_description": "x"}
        )
        assert refused.status_code == 401
        assert "The provider refused the sign-in: access_deniedb" in refused.text
        site.provider.claims = {"aud": "other"}
        refused = await site.sign_in(browser)
        assert refused.status_code == 401
        assert "does not include the client appliance" in refused.text
        site.provider.claims = {}
        site.provider.metadata = {"token_endpoint": f"{ISSUER}/nothing"}
        site.configure()
        failed = await site.sign_in(browser)
        assert failed.status_code == 500
        assert "The identity provider https://id.example.org failed" in failed.text
    denied = await site.bench.store.audit.newest(limit=5, filters=AuditFilter(action="session.sign_in"))
    assert [each.outcome for each in denied] == ["failed", "denied"]


@pytest.mark.parametrize(
    ("person", "reason"),
    [
        ({"preferred_username": None}, "sent no usable claim preferred_username"),
        ({"preferred_username": "../.."}, "sent no usable claim preferred_username"),
        ({"preferred_username": "Me"}, "is that of the administrator"),
        ({"sub": "s-ben"}, "belongs to another person"),
    ],
)
async def test_some_people_get_no_account(site: Site, person: dict[str, Any], reason: str) -> None:
    async with site.signed_in() as browser:
        site.provider.person |= person
        refused = await site.sign_in(browser)
        assert refused.status_code == 401
        assert reason in unescape(refused.text)


async def test_an_unverified_address_is_no_account(site: Site) -> None:
    site.configure(account_claim="email")
    site.provider.person |= {"email": "Anna@example.org", "email_verified": False}
    async with site.browser() as browser:
        assert "has not verified your e-mail" in (await site.sign_in(browser)).text
        site.provider.person["email_verified"] = True
        assert (await site.sign_in(browser)).status_code == 303
        assert (await me(browser))[0] == "anna-example-org"


async def test_after_the_sign_out_the_provider_offers_its_own(site: Site) -> None:
    async with site.signed_in() as browser:
        page = await browser.post("/signout")
        assert page.status_code == 200
        (link,) = re.findall(rf'href="({ISSUER}/logout[^"]+)"', page.text)
        query = parse_qs(urlsplit(unescape(link)).query)
        assert query == {"client_id": ["appliance"], "post_logout_redirect_uri": [f"{BASE}/"]}
        assert (await browser.get("/usage")).headers["location"].startswith("/signin")


async def test_sessions_end_when_the_provider_is_replaced(site: Site) -> None:
    async with site.signed_in() as browser:
        site.configure(issuer="https://other.example.org")
        assert (await browser.get("/usage")).headers["location"].startswith("/signin")


async def test_the_sign_in_leads_to_this_site_only(site: Site) -> None:
    async with site.browser() as browser:
        for then in ("//evil.example", "https://evil.example", "/\\evil.example"):
            begun = await browser.get("/signin/provider", params={"next": then})
            query = site.provider.sign_in(begun.headers["location"])
            reply = await browser.get("/signin/callback", params=query)
            assert reply.headers["location"] == "/", then


async def test_many_wrong_callbacks_must_wait(site: Site) -> None:
    async with site.browser() as browser:
        for _ in range(MOST):
            await site.begin(browser)
            wrong = await browser.get("/signin/callback", params={"code": "x", "state": "guess"})
            assert wrong.status_code == 401
        await site.begin(browser)
        reply = await browser.get("/signin/callback", params={"code": "x", "state": "guess"})
        assert reply.status_code == 429
