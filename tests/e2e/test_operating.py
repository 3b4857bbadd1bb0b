"""What operators do in the pages, in a real browser: a prediction, tokens, rights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.browsing import sign_in, watched
from tests.e2e.clients import run
from tests.support.appliance_process import TOKEN, Appliance, fetch
from tests.support.webhook_receiver import Receiver

pytestmark = pytest.mark.e2e

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(1)"> ${alert(1)} {{value}} </pre>'
STREAM = "test/stream"


def choose(page: Page, label: str, option: str | re.Pattern[str]) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option).click()


def test_a_prediction_is_opened_by_its_address_and_what_is_in_it_is_inert(
    page: Page, client: httpx.Client, receiver: Receiver
) -> None:
    hook = f"{receiver.url}/{'<script>alert(1)</script>'}"
    told = run(client, STREAM, input={"text": HOSTILE}, webhook=hook)
    page.goto(told["urls"]["web"])
    shown = page.locator("main")
    expect(shown.get_by_role("heading", name=told["id"])).to_be_visible()
    expect(shown.locator(".badge.succeeded")).to_be_visible()
    expect(shown.locator("pre.text").first).to_have_text(HOSTILE)
    expect(shown.locator(".bar i.running")).to_have_count(1)
    expect(shown.locator(".bar i.queued")).to_have_count(1)
    expect(shown.get_by_text("predict_time")).to_be_visible()
    expect(shown.get_by_text(receiver.url)).to_be_visible()
    page.reload()
    expect(shown.get_by_text("delivered", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Run again, with changes")).to_have_attribute(
        "href", f"./{STREAM}?from={told['id']}"
    )
    assert page.locator("main script, main iframe, main [onerror]").count() == 0


def test_a_version_is_run_on_its_own_page(page: Page, client: httpx.Client) -> None:
    version = client.get(f"/v1/models/{STREAM}").json()["latest_version"]["id"]
    page.goto(f"/{STREAM}")
    page.get_by_role("tab", name="Versions").click()
    page.get_by_role("link", name=version).click()
    expect(page.get_by_role("heading", name=f"{STREAM}:{version[:8]}")).to_be_visible()
    page.locator("#input-text").fill("by its version")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#output")).to_have_text("by its version")
    page.get_by_role("tab", name="Code").click()
    expect(page.locator("#code-python")).to_contain_text(f"{STREAM}:{version}")


def test_an_output_file_is_linked(page: Page, client: httpx.Client) -> None:
    made = run(client, "test/files", input={"text": "x"})
    page.goto(made["urls"]["web"])
    address = httpx.URL(made["output"][0] if isinstance(made["output"], list) else made["output"])
    expect(page.locator(f'main a[href$="{address.path}"]')).to_be_visible()


def test_a_prediction_is_chosen_as_an_example(page: Page, client: httpx.Client) -> None:
    made = run(client, STREAM, input={"text": "as an example"})
    page.goto(made["urls"]["web"])
    page.get_by_role("button", name="Show as an example").click()
    expect(page.get_by_role("button", name="Remove from the examples")).to_be_visible()
    page.get_by_role("link", name=STREAM, exact=True).last.click()
    page.get_by_role("tab", name="Examples").click()
    expect(page.locator("article.example", has_text="as an example")).to_be_visible()
    page.get_by_role("tab", name="Performance").click()
    expect(page.get_by_role("link", name=made["id"])).to_be_visible()
    page.goto(made["urls"]["web"])
    page.get_by_role("button", name="Remove from the examples").click()
    expect(page.get_by_role("button", name="Show as an example")).to_be_visible()
    assert client.get(f"/v1/models/{STREAM}/examples").json()["results"] == []


def test_a_token_is_made_in_the_browser_works_and_is_revoked(page: Page, appliance: Appliance) -> None:
    name = f"browser {HOSTILE}"[:90]
    page.goto("/settings")
    expect(page.locator("#about")).to_contain_text("Version")
    page.evaluate("window.same = true")  # until the page is loaded again
    create = page.get_by_role("button", name="Create a token")
    create.click()
    expect(page.get_by_role("alert").filter(has_text="Give the token a name")).to_be_visible()
    page.get_by_label("Name of a new token").fill(name)
    create.click()
    secret = page.locator("#secret")
    expect(secret).to_have_text(re.compile("^apl_"))
    made = {"Authorization": f"Bearer {secret.text_content()}"}
    row = page.locator("#tokens tr").filter(has_text="browser")
    expect(row).to_contain_text(name)
    assert fetch(f"{appliance.url}/v1/account", headers=made).status_code == 200
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(row).to_contain_text("valid")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    expect(page.locator(".toast")).to_contain_text(name)
    assert fetch(f"{appliance.url}/v1/account", headers=made).status_code == 401
    assert page.evaluate("window.same")
    page.reload()
    expect(row).to_contain_text("revoked")
    expect(secret).to_be_hidden()
    page.get_by_text("Configuration in effect").click()
    expect(page.locator("#config")).to_contain_text('"drain_timeout"')
    assert TOKEN not in page.content()


def test_without_the_admin_scope_one_sees_ones_own_and_no_buttons(
    browser: Browser, appliance: Appliance, client: httpx.Client, new_token: Callable[..., str]
) -> None:
    mine = run(client, STREAM, input={"text": "x"})
    secret = new_token("guest", scope="read", owner="guest")
    with watched(browser, appliance.url, refused=True) as page:
        sign_in(page, secret)
        expect(page.get_by_role("link", name="Settings")).to_have_count(0)
        page.goto("/machine")
        expect(page.locator("#models tr").filter(has_text=STREAM)).to_be_attached()
        expect(page.locator("#models").get_by_role("button", include_hidden=True)).to_have_count(0)
        page.goto("/predictions")
        expect(page.get_by_text("No predictions")).to_be_visible()
        expect(page.get_by_label("Token", exact=True)).to_be_hidden()
        page.goto(mine["urls"]["web"])
        expect(page.get_by_text("There is no such prediction")).to_be_visible()
        assert page.goto("/settings").status == 404  # type: ignore[union-attr] # it is answered
        expect(page.get_by_text("scope admin")).to_be_visible()


def test_a_discarded_draft_of_the_config_leaves_no_conflict(
    browser: Browser, appliance: Appliance, signed_in: Any
) -> None:
    sent: list[str] = []

    def refuse(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "")["checksum"])
        route.fulfill(status=409, json={"detail": "It is only a test."})

    with watched(browser, appliance.url, storage_state=signed_in, refused=True) as page:
        page.goto("/config")
        text = page.locator("#text")
        changed = f"{text.input_value()}# a comment\n"
        text.fill(changed)
        page.evaluate(
            """() => {
              const name = Object.keys(sessionStorage).find((key) => key.startsWith("config:"));
              const draft = JSON.parse(sessionStorage.getItem(name));
              sessionStorage.setItem(name, JSON.stringify({ ...draft, checksum: "of an older file" }));
            }"""
        )
        page.reload()
        expect(text).to_have_value(changed)
        page.get_by_role("button", name="Discard the change").click()
        text.fill(changed)
        page.route("**/_ui/api/admin/config/file", refuse)
        page.get_by_role("button", name="Show the change").click()
        page.get_by_role("button", name="Apply", exact=True).click()
        expect(page.get_by_text("It is only a test.")).to_be_visible()
        assert sent == [page.locator("#editor").get_attribute("data-checksum")]


def test_the_pages_fit_on_a_phone(
    browser: Browser, appliance: Appliance, client: httpx.Client, signed_in: Any
) -> None:
    told = run(client, STREAM, input={"text": "a" * 500})
    size = {"width": 390, "height": 844}
    narrow: dict[str, Any] = {"viewport": size, "color_scheme": "dark", "storage_state": signed_in}
    with watched(browser, appliance.url, **narrow) as page:
        for path, there in (
            ("/predictions", "#predictions td"),
            (f"/p/{told['id']}", "pre.text"),
            ("/machine", "#models td"),
            ("/usage", "#usage td"),
            ("/settings", "#tokens td"),
        ):
            page.goto(path)
            expect(page.locator(there).first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], path
