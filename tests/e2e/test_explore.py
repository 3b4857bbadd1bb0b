"""Signing in, and finding a model, in a real browser."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browsing import sign_in, sign_out, watched
from tests.e2e.conftest import LANGUAGE_MODEL
from tests.support.appliance_process import TOKEN, Appliance

pytestmark = pytest.mark.e2e


def test_one_signs_in_finds_a_model_and_signs_out(page: Page) -> None:
    page.context.clear_cookies()
    cards = page.locator("#cards .card")
    search = page.get_by_label("Search models")
    sign_in(page, TOKEN)
    expect(cards.filter(has_text="tiny-shapes")).to_be_visible()
    search.fill("small languege")
    expect(cards).to_have_count(1)
    expect(cards).to_contain_text("smollm2-135m-instruct")
    search.fill("no such thing")
    expect(page.get_by_text("No model matches")).to_be_visible()
    search.fill("speech")
    expect(cards.filter(has_text="whisper-tiny-en")).to_be_visible()
    expect(cards.filter(has_text="piper-joe")).to_be_visible()
    page.get_by_role("radio", name="Text to speech").check(force=True)
    expect(cards.filter(has_text="whisper-tiny-en")).to_have_count(0)
    expect(page).to_have_url(re.compile(r"\?q=speech&kind=piper$"))
    page.reload()
    expect(search).to_have_value("speech")
    expect(cards.filter(has_text="piper-joe")).to_be_visible()
    expect(cards.filter(has_text="whisper-tiny-en")).to_have_count(0)
    page.goto("/explore")
    page.get_by_label("Collection").select_option("Talkers")
    expect(cards).to_have_count(1)
    cards.click()
    page.wait_for_url(f"**/{LANGUAGE_MODEL}")
    sign_out(page)
    page.wait_for_url("**/signin")
    page.goto("/explore")
    page.wait_for_url("**/signin?next=%2Fexplore")


def test_cards_show_a_new_state_by_themselves(page: Page, client: httpx.Client) -> None:
    client.post("/admin/models/test/files/unload")
    page.goto("/explore")
    card = page.locator("#cards .card").filter(has_text="test/files")
    expect(card.locator(".badge", has_text="not loaded")).to_be_visible()
    client.post("/admin/models/test/files/load")
    expect(card.locator(".badge.ready")).to_be_visible()


#: As if the way to the sign-in took long: the session is gone, and the page goes on for half a second.
SLOWLY = """addEventListener("submit", (event) => {
    event.preventDefault();
    const signing = new XMLHttpRequest();
    signing.open("POST", "/signout", false);
    signing.send();
    window.htmx.trigger("#history", "refresh");
    setTimeout(() => event.target.submit(), 500);
})"""


def test_a_page_that_is_left_by_signing_out_asks_for_nothing_more(page: Page) -> None:
    page.goto("/test/stream")
    page.evaluate(SLOWLY)
    sign_out(page)
    page.wait_for_url("**/signin")


def test_it_fits_on_a_phone(phone: Page) -> None:
    phone.goto("/explore")
    expect(phone.locator(".card").first).to_be_visible()
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 390


def test_a_token_that_is_none_is_refused(browser: Browser, appliance: Appliance) -> None:
    with watched(browser, appliance.url, refused=True) as page:
        page.goto("/explore")
        page.get_by_label("API token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know this token")
        sign_in(page, TOKEN)
