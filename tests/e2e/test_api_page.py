"""The page about the API, in a browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.e2e


def test_an_operation_is_found_opened_and_linked(page: Page) -> None:
    page.goto("./api")
    expect(page.locator("#shown")).to_contain_text("operations")
    page.get_by_role("searchbox", name="Search operations").fill("cancel a prediction")
    expect(page.locator(".operations details:visible")).to_have_count(2)
    expect(page.locator("#shown")).to_have_text("Operations found: 2")
    operation = page.locator("details[id='predictions.cancel']")
    operation.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(operation.locator("pre")).to_contain_text("/v1/predictions/{id}/cancel")
    page.get_by_role("searchbox", name="Search operations").fill("xqxqxq")
    expect(page.locator("#shown")).to_have_text("No operation has these words.")
    page.goto("./explore")
    page.goto("./api#files.create")
    expect(page.locator("details[id='files.create'] pre")).to_be_visible()


def test_the_tabs_have_programs_for_this_appliance(page: Page) -> None:
    page.goto("./api")
    page.get_by_role("tab", name="Python").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="JavaScript")).to_be_focused()
    expect(page.locator("#program-javascript")).to_contain_text("new Replicate(")
    expect(page.locator("#program-python")).to_be_hidden()
    page.get_by_role("link", name="Try it in Swagger UI").click()
    expect(page.locator(".opblock").first).to_be_visible()
