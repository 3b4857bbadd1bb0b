"""Signing in, and finding a model, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browsing import sign_in, watched
from tests.e2e.conftest import LANGUAGE_MODEL, Background
from tests.support.appliance_process import TOKEN, Appliance

pytestmark = pytest.mark.e2e


def test_one_signs_in_finds_a_model_and_signs_out(page: Page) -> None:
    cards = page.locator(".card")
    expect(cards.filter(has_text="tiny-shapes")).to_be_visible()
    page.get_by_placeholder("Search models").fill("small language")
    expect(cards).to_have_count(1)
    expect(cards).to_contain_text("smollm2-135m-instruct")
    page.get_by_placeholder("Search models").fill("no such thing")
    expect(page.get_by_text("No model matches")).to_be_visible()
    page.get_by_placeholder("Search models").fill("")
    page.locator("#collection input").click()
    page.get_by_role("option", name="Talkers").click()
    expect(cards).to_have_count(1)
    told = f"/{LANGUAGE_MODEL}/gradio_api/queue/data"  # Gradio calls it an error to be left before
    with page.expect_event("requestfinished", lambda request: told in request.url):
        cards.click()
    page.wait_for_url(f"**/{LANGUAGE_MODEL}")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/signin")
    page.goto("/explore")
    page.wait_for_url("**/signin?next=%2Fexplore")


@pytest.mark.last
def test_no_connection_is_closed_under_the_gateway(slow: dict[str, Background]) -> None:
    assert slow["kept"].result() == 200


#: As if the way to the sign-in took long: the session is gone, and the page goes on for half a second.
SLOWLY = """addEventListener("submit", (event) => {
    event.preventDefault();
    const signing = new XMLHttpRequest();
    signing.open("POST", "/signout", false);
    signing.send();
    void fetch("/explore/gradio_api/info");
    setTimeout(() => event.target.submit(), 500);
})"""


def test_a_page_that_is_left_by_signing_out_asks_for_nothing_more(page: Page) -> None:
    expect(page.locator(".card").first).to_be_visible()
    page.evaluate(SLOWLY)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/signin")


def test_it_fits_on_a_phone(phone: Page) -> None:
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
