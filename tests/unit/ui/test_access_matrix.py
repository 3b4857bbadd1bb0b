"""Every page of the UI as every kind of caller: the expected status of each cell of the matrix."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from appliance.domain import failed_attempts
from appliance.gateway.api.client_address import HEADER, signed
from appliance.ui import session
from appliance.ui.pages import PAGES
from tests.support.api_client import SECRET, Api
from tests.support.callers import add_callers
from tests.support.engine_bench import Bench
from tests.support.ui_client import Pages

NO_SESSION: Final = ("nobody", "expired", "revoked")
CALLERS: Final = ("reader", "runner", "limited", "outsider", "other", "admin")
MODEL: Final = "/test/echo"
#: The status for each of ``CALLERS``. 404 for ``admin`` means that the path names nothing that exists,
#: 500 that the appliance of this test has no models.yaml.
MATRIX: Final = """
/_ui/find                                          200 200 200 200 200 200
/add                                               404 404 404 404 404 200
/add/additions/{id}                                404 404 404 404 404 404
/add/found                                         404 404 404 404 404 200
/add/proposal                                      404 404 404 404 404 200
/add/start                                         404 404 404 404 404 404
/api                                               200 200 200 200 200 200
/audit                                             404 404 404 404 404 200
/chat                                              200 200 200 200 200 200
/chat/{id}                                         404 404 404 404 404 404
/compare                                           200 200 200 200 200 200
/config                                            404 404 404 404 404 500
/explore                                           200 200 200 200 200 200
/explore/cards                                     200 200 200 200 200 200
/machine                                           200 200 200 200 200 200
/machine/unused                                    403 403 403 403 403 500
/machine/{part}                                    404 404 404 404 404 404
/models/{owner}/{name}/settings                    404 404 404 404 404 200
/models/{owner}/{name}/settings/load-test          404 404 404 404 404 404
/models/{owner}/{name}/settings/remove             404 404 404 404 404 404
/models/{owner}/{name}/settings/update             404 404 404 404 404 200
/p/{id}                                            404 404 404 404 404 404
/p/{id}/body                                       404 404 404 404 404 404
/p/{id}/cancel                                     404 404 404 404 404 404
/p/{id}/example                                    404 404 404 404 404 404
/p/{id}/output                                     404 404 404 404 404 404
/p/{id}/rerun                                      404 404 404 404 404 404
/predictions                                       200 200 200 200 200 200
/predictions/download/{kind}                       404 404 404 404 404 404
/predictions/list                                  200 200 200 200 200 200
/sessions                                          200 200 200 200 200 200
/sessions/list                                     200 200 200 200 200 200
/settings                                          404 404 404 404 404 200
/settings/tokens                                   404 404 404 404 404 200
/usage                                             200 200 200 200 200 200
/usage/csv                                         200 200 200 200 200 200
/usage/report                                      200 200 200 200 200 200
/{owner}/{name}                                    200 200 404 404 200 200
/{owner}/{name}/code                               404 404 404 404 404 404
/{owner}/{name}/panels/{panel}                     404 404 404 404 404 404
/{owner}/{name}/runs                               200 200 404 404 200 200
/{owner}/{name}/state                              200 200 404 404 200 200
/{owner}/{name}/versions/{version}                 404 404 404 404 404 404
/{owner}/{name}/versions/{version}/code            404 404 404 404 404 404
/{owner}/{name}/versions/{version}/panels/{panel}  404 404 404 404 404 404
/{owner}/{name}/versions/{version}/runs            404 404 404 404 404 404
/{owner}/{name}/versions/{version}/state           404 404 404 404 404 404
"""
EXPECTED: Final = {
    template: list(map(int, statuses)) for template, *statuses in map(str.split, MATRIX.strip().splitlines())
}


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def add_tokens(api: Api, bench: Bench) -> dict[str, str]:
    """Create tokens that are valid at first; return their secrets."""
    return await add_callers(api, bench, expired={"expires_at": time.time() + 3600}, revoked={})


#: The template of each route of each page.
ROUTES: Final = list(dict.fromkeys(route.path for page in PAGES for route in page.routes))


def path_of(template: str) -> str:
    template = template.replace("/{owner}/{name}", MODEL, 1) if template.startswith("/{owner}") else template
    return "/".join("x" if part.startswith("{") else part for part in template.split("/"))


async def test_each_caller_gets_the_status_of_the_matrix(pages: Pages, api: Api, bench: Bench) -> None:
    secrets = await add_tokens(api, bench)
    found: dict[str, list[int]] = {template: [] for template in ROUTES}
    for caller in CALLERS:
        async with pages.signed_in(secrets[caller]) as browser:
            for template in ROUTES:
                found[template].append((await browser.get(path_of(template))).status_code)
    assert found == EXPECTED, "add new routes to MATRIX"


async def test_the_page_of_a_denied_model_is_not_there(pages: Pages, api: Api, bench: Bench) -> None:
    secrets = await add_tokens(api, bench)
    for caller in ("admin", *CALLERS):
        denied = caller in {"limited", "outsider"}
        async with pages.signed_in(secrets[caller]) as browser:
            assert (await browser.get(MODEL)).status_code == (404 if denied else 200), caller
            explored = await browser.get("/explore")
            assert ("test/echo" in explored.text) is not denied, caller


async def test_without_a_session_every_page_leads_to_the_sign_in(
    pages: Pages, api: Api, bench: Bench
) -> None:
    secrets = await add_tokens(api, bench)
    browsers: dict[str, httpx.AsyncClient] = {"nobody": pages.browser()}
    for caller in ("expired", "revoked"):
        browsers[caller] = pages.browser()
        reply = await browsers[caller].post("/signin", data={"token": secrets[caller]})
        assert reply.status_code == 303
    await bench.store.revoke_token("revoked")
    api.services.auth.forget("revoked")
    at = time.time() + 7200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.gateway.api.auth.time.time", lambda: at)
        pages.sessions._known.clear()
        for caller in NO_SESSION:
            for path in [MODEL, *map(path_of, ROUTES)]:
                reply = await browsers[caller].get(path)
                assert reply.status_code == 303, (caller, path)
                assert reply.headers["location"].startswith("/signin"), (caller, path)
                scripted = await browsers[caller].get(path, headers={"Accept": "application/json"})
                assert scripted.status_code == 401, (caller, path)
    for browser in browsers.values():
        await browser.aclose()


async def test_a_token_of_another_network_cannot_sign_in(pages: Pages, api: Api, bench: Bench) -> None:
    secrets = await add_tokens(api, bench)
    async with pages.browser() as browser:
        there = {HEADER: signed("198.51.100.7")}
        reply = await browser.post("/signin", data={"token": secrets["elsewhere"]}, headers=there)
        assert reply.status_code == 303
        assert (await browser.get("/explore", headers=there)).status_code == 200
        moved = await browser.get("/explore", headers={HEADER: signed("203.0.113.5")})
        assert moved.status_code == 403
        assert "203.0.113.5" in moved.text
        refused = await browser.post(
            "/signin", data={"token": secrets["elsewhere"]}, headers={HEADER: signed("203.0.113.5")}
        )
        assert refused.status_code == 403
        assert "may not be used from the address 203.0.113.5" in refused.text
        forged = await browser.get("/explore", headers={HEADER: "198.51.100.7 0123"})
        assert forged.status_code == 403


async def test_many_wrong_sign_ins_from_one_address_must_wait(pages: Pages, api: Api) -> None:
    here = {HEADER: signed("203.0.113.5")}
    async with pages.browser() as browser:
        for _ in range(failed_attempts.MOST):
            assert (await browser.post("/signin", data={"token": "guess"}, headers=here)).status_code == 401
        refused = await browser.post("/signin", data={"token": "guess"}, headers=here)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "Too many requests from 203.0.113.5" in refused.text
        assert (await browser.post("/signin", data={"token": SECRET}, headers=here)).status_code == 303


async def test_who_has_made_too_many_requests_stays_signed_in(
    pages: Pages, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pages.signed_in(SECRET) as browser:
        assert (await browser.get("/explore")).status_code == 200
        monkeypatch.setattr(session, "MEMORY", 0.0)
        api.services.rate_limits.limit(requests=1, predictions=None)
        replies = [await browser.get("/explore") for _ in range(3)]
        assert {reply.status_code for reply in replies[1:]} == {429}
        assert (await browser.get("/_ui/beat")).json() == {"session": True}


async def test_one_is_signed_out_even_if_it_cannot_be_recorded(pages: Pages, api: Api) -> None:
    async with pages.signed_in(SECRET) as browser:
        api.services.rate_limits.limit(requests=1, predictions=None)
        await browser.get("/explore")
        assert (await browser.post("/signout")).status_code == 303
        assert (await browser.get("/explore")).headers["location"].startswith("/signin")
