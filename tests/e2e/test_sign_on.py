"""People sign in at a real OpenID provider (npm: oidc-provider) and with passwords, in a browser."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.e2e import browsing
from tests.e2e.test_pages import AXE, SHIFTS, check
from tests.support.appliance_process import PATIENCE, ROOT, Appliance, fetch, free_port, wait_for

pytestmark = pytest.mark.e2e

SCRIPT = ROOT / "tests" / "support" / "identity_provider.mjs"
CONFIG = """
server: {{public_url: "{url}"}}
access:
  everybody: {{models: [test/echo], may: [run]}}
  groups:
    vision: {{members: [], models: [test/vision], may: [run]}}
    operators: {{members: [carol], models: ["*"], may: [run, operate, see-all]}}
sign_on:
  oidc:
    issuer: {issuer}
    client_id: appliance
    client_secret_file: client.secret
    name: Example ID
    scopes: [profile, groups]
    groups_claim: groups
    groups: {{/ml: vision, /ops: operators}}
    scope: admin
models:
  - {{name: test/echo, kind: echo}}
  - {{name: test/vision, kind: echo}}
"""


class Site:
    """An appliance and its identity provider."""

    def __init__(self, home: Path) -> None:
        self.issuer = f"http://127.0.0.1:{free_port()}"
        self._control = home / "control.json"
        self.control(anna=["/ml"])
        (home / "client.secret").write_text("a secret & more\n")
        config = home / "models.yaml"
        self.appliance = Appliance(home, config, ui=True)
        config.write_text(CONFIG.format(url=self.appliance.url, issuer=self.issuer))
        self._process: subprocess.Popen[bytes] | None = None

    def control(self, audience: str | None = None, **groups: list[str]) -> None:
        """Set the groups of people, and the audience of ID tokens if it is to be wrong."""
        fresh = self._control.with_suffix(".new")
        fresh.write_text(json.dumps({"groups": groups, "audience": audience}))
        fresh.rename(self._control)

    def start(self) -> None:
        variables = {
            "PORT": self.issuer.rpartition(":")[2],
            "CALLBACK": f"{self.appliance.url}/signin/callback",
            "AFTER_LOGOUT": f"{self.appliance.url}/",
            "CONTROL": str(self._control),
        }
        with SCRIPT.open("rb") as script, (self.appliance.home / "provider.txt").open("wb") as output:
            self._process = subprocess.Popen(
                ["node", "--input-type=module"],
                cwd=ROOT / ".clients" / "js",  # where Node.js finds the packages
                stdin=script,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
            )
        self.appliance.start()
        discovery = f"{self.issuer}/.well-known/openid-configuration"
        wait_for(lambda: fetch(discovery).status_code == 200, "the identity provider")
        wait_for(lambda: fetch(f"{self.appliance.url}/signin").status_code == 200, "the UI")

    def stop(self) -> None:
        self.appliance.stop()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)

    def command(self, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.appliance.program), *arguments, "--config", str(self.appliance.config)],
            input=password,
            env=self.appliance.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )

    def audited(self, action: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            self.command("audit", "list", "--action", action, "--json").stdout
        )
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("home"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
    assert made.appliance.processes() == []


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    opened = browser.new_context(base_url=site.appliance.url)
    opened.set_default_timeout(PATIENCE * 1000)
    yield opened
    opened.close()


def sign_in(page: Page, name: str) -> None:
    begin_sign_in(page, name)
    page.get_by_role("button", name="Continue").click()


def begin_sign_in(page: Page, name: str) -> None:
    """Give the provider a name and a password, of which it accepts all. Then it asks for consent."""
    page.goto("/usage")
    page.get_by_role("link", name="Sign in with Example ID").click()
    page.locator("[name=login]").fill(name)
    page.locator("[name=password]").fill("any")
    page.get_by_role("button").click()


def models(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "async () => (await (await fetch('/_ui/api/v1/models')).json()).results.map((each) => each.name)"
    )
    return sorted(found)


def test_people_sign_in_with_their_groups_and_sign_out(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, "anna")
    page.wait_for_url("**/usage")
    assert models(page) == ["echo", "vision"]
    page.locator(".menu > summary").click()
    expect(page.locator(".menu")).to_contain_text("Signed in at the identity provider")
    page.get_by_role("link", name="Sessions").click()
    expect(page.locator("#session-list")).to_contain_text("this browser")
    browsing.sign_out(page)
    expect(page.get_by_role("status")).to_contain_text("You are signed out.")
    page.goto("/usage")
    expect(page).to_have_url(f"{site.appliance.url}/signin?next=%2Fusage")
    (out, *_) = site.audited("session.sign_out")
    (signed_in, *_) = site.audited("session.sign_in")
    assert (out["owner"], signed_in["owner"]) == ("anna", "anna")
    assert out["token"] == signed_in["object"]


@pytest.mark.parametrize("width", [1440, 390])
def test_the_pages_are_accessible(site: Site, browser: Browser, width: int) -> None:
    wrong: list[str] = []
    site.command("users", "add", f"user{width}", password="correct horse\n")
    with browsing.watched(browser, site.appliance.url, viewport={"width": width, "height": 900}) as page:
        page.add_init_script(SHIFTS)
        page.add_init_script(path=AXE)
        page.goto("./signin")
        expect(page.get_by_label("Password")).to_be_visible()
        check(page, "/signin", wrong)
        page.get_by_label("Username").fill(f"user{width}")
        page.get_by_label("Password").fill("correct horse")
        page.get_by_role("button", name="Sign in").first.click()
        page.wait_for_url("**/explore")
        page.goto("./sessions")
        expect(page.locator("#session-list")).to_contain_text("this browser")
        check(page, "/sessions", wrong)
    assert not wrong, "\n".join(wrong)


def test_the_provider_offers_to_sign_out_too(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, "anna")
    page.wait_for_url("**/usage")
    browsing.sign_out(page)
    page.get_by_role("link", name="Also sign out of Example ID").click()
    page.get_by_role("button", name="Yes, sign me out").click()
    page.wait_for_url(f"{site.appliance.url}/**")
    page.get_by_role("link", name="Sign in with Example ID").click()
    expect(page.locator("[name=login]")).to_be_visible()  # the provider asks again


def test_other_groups_apply_at_the_next_sign_in(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    site.control(ben=[])
    sign_in(page, "ben")
    page.wait_for_url("**/usage")
    assert models(page) == ["echo"]
    site.control(ben=["/ml"])
    assert models(page) == ["echo"]
    browsing.sign_out(page)
    page.get_by_role("link", name="Sign in with Example ID").click()  # the provider still knows the person
    page.wait_for_url("**/explore")
    assert models(page) == ["echo", "vision"]
    assert page.request.get("/settings").status == 404
    site.control(ben=["/ops"])
    browsing.sign_out(page)
    page.get_by_role("link", name="Sign in with Example ID").click()
    page.wait_for_url("**/explore")
    page.goto("/settings")
    expect(page.get_by_role("heading", name="Tokens")).to_be_visible()
    site.control(anna=["/ml"])


def test_an_expired_session_leads_to_the_sign_in(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, "anna")
    page.wait_for_url("**/usage")
    with sqlite3.connect(site.appliance.home / "appliance.db", timeout=PATIENCE) as database:
        database.execute("UPDATE sessions SET expires_at = ?", (time.time() - 1,))
    database.close()

    def ended() -> bool:  # the gateway keeps a session that it has found for a second
        return not page.request.get("/_ui/beat").json()["session"]

    wait_for(ended, "the session to end")
    page.goto("/usage")
    expect(page).to_have_url(f"{site.appliance.url}/signin?next=%2Fusage")


def test_a_token_for_another_audience_is_refused(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    site.control(audience="other", anna=["/ml"])
    sign_in(page, "anna")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("its audience (aud) does not include the client appliance")
    site.control(anna=["/ml"])
    page.goto("/usage")
    expect(page).to_have_url(f"{site.appliance.url}/signin?next=%2Fusage")
    assert site.audited("session.sign_in")[0]["outcome"] == "denied"


def test_a_sign_in_cannot_be_replayed(site: Site, browser: Browser, context: BrowserContext) -> None:
    page = context.new_page()
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url) if "/callback" in request.url else None)
    begin_sign_in(page, "anna")
    cookies = context.cookies()
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url("**/usage")
    (url,) = seen
    page.goto(url)
    expect(page.get_by_role("alert")).to_contain_text("did not begin in this browser")
    thief = browser.new_context()
    thief.add_cookies([each for each in cookies if each["name"].startswith("appliance_")])  # type: ignore[misc]
    stolen = thief.new_page()
    stolen.goto(url)
    expect(stolen.get_by_role("alert")).to_contain_text("has been finished already")
    stolen.goto(f"{site.appliance.url}/usage")
    assert "/signin" in stolen.url
    thief.close()


def test_people_sign_in_with_passwords_and_revoke_sessions(
    site: Site, browser: Browser, context: BrowserContext
) -> None:
    site.command("users", "add", "carol", "--scope", "admin", password="correct horse\n")
    assert "correct horse" not in (site.appliance.home / "output.txt").read_text()
    page = context.new_page()
    page.goto("/sessions")
    page.get_by_label("Username").fill("carol")
    page.get_by_label("Password").fill("wrong horse")
    page.get_by_role("button", name="Sign in").first.click()
    expect(page.get_by_role("alert")).to_contain_text("The username or the password is wrong.")
    expect(page.get_by_label("Username")).to_have_value("carol")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Sign in").first.click()
    page.wait_for_url("**/sessions")
    with_provider = browser.new_context(base_url=site.appliance.url)
    other = with_provider.new_page()
    sign_in(other, "anna")
    other.wait_for_url("**/usage")
    page.reload()
    row = page.get_by_role("row").filter(has_text="anna")
    assert row.count() >= 1
    for _ in range(row.count()):
        before = row.count()
        row.first.get_by_role("button").click()
        page.get_by_role("button", name="Revoke", exact=True).last.click()
        expect(row).to_have_count(before - 1)
    wait_for(lambda: not other.request.get("/_ui/beat").json()["session"], "the session to end")
    with_provider.close()
    assert site.audited("session.revoke")[0]["owner"] == "carol"
    site.command("users", "remove", "carol")
    wait_for(lambda: not page.request.get("/_ui/beat").json()["session"], "the session to end")
