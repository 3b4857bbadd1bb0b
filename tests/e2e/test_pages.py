"""All template pages of the navigation, in a real browser at three widths and in both colour schemes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from appliance.ui.pages import PAGES
from appliance.ui.template_pages import TemplatePage
from tests.e2e.browsing import sign_in, watched
from tests.support.appliance_process import ROOT, TOKEN, Appliance

pytestmark = pytest.mark.e2e

AXE = ROOT / ".clients/js/node_modules/axe-core/axe.min.js"
PATHS = [page.path for page in PAGES if page.listed and isinstance(page, TemplatePage)]
#: Pages of models: of one with an output, with files, and the tabs of one.
MODEL_PAGES = [
    "/test/stream",
    "/test/files",
    "/appliance/tiny-shapes",
    *(f"/test/stream?tab={tab}" for tab in ("code", "examples", "readme", "versions", "performance")),
]
#: Measures how far elements move without an action of the user (Cumulative Layout Shift).
SHIFTS = """
window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""
#: Runs the rules of axe with these ids, or all rules that it runs by default.
VIOLATIONS = """(rules) => axe.run(rules ? { runOnly: rules } : {}).then(({ violations }) => violations.map(
  ({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(" ")).slice(0, 3).join(", ")}`,
))"""
#: The rules that axe runs by default and that depend on colours.
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
#: Words that begin on one line and end on another. Code and ids may be broken.
BROKEN_WORDS = r"""() => {
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const broken = [];
  const range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("pre, code, textarea, script, style")) continue;
    for (const word of node.data.matchAll(/[\p{L}\p{M}]{2,}/gu)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(({ top }) => Math.round(top)));
      if (lines.size > 1 && word[0].length <= 40) broken.push(word[0]);
    }
  }
  return broken;
}"""


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_each_page_is_accessible_still_and_fits(
    browser: Browser, appliance: Appliance, client: httpx.Client, width: int
) -> None:
    made = client.post(
        "/v1/models/test/stream/predictions", json={"input": {"text": "x"}}, headers={"Prefer": "wait"}
    ).json()
    wrong: list[str] = []
    size: Any = {"width": width, "height": 900}
    with watched(browser, appliance.url, viewport=size, color_scheme="light") as page:
        page.add_init_script(SHIFTS)
        page.add_init_script(path=AXE)
        page.goto("./signin")
        check_in_both_schemes(page, "/signin", wrong)
        sign_in(page, TOKEN)
        for path in [*PATHS, f"/p/{made['id']}", *MODEL_PAGES]:
            page.goto(f".{path}")
            expect(page.locator("main").first).to_be_visible()
            check_in_both_schemes(page, path, wrong)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("width", [1440, 390])
def test_each_page_is_mirrored_in_arabic(
    browser: Browser, appliance: Appliance, client: httpx.Client, signed_in: Any, width: int
) -> None:
    made = client.post(
        "/v1/models/test/stream/predictions", json={"input": {"text": "x"}}, headers={"Prefer": "wait"}
    ).json()
    wrong: list[str] = []
    size: Any = {"width": width, "height": 900}
    with watched(browser, appliance.url, viewport=size, locale="ar", storage_state=signed_in) as page:
        page.add_init_script(SHIFTS)
        page.add_init_script(path=AXE)
        for path in [*PATHS, f"/p/{made['id']}"]:
            page.goto(f".{path}")
            expect(page.locator("main").first).to_be_visible()
            assert page.evaluate("document.documentElement.dir") == "rtl", path
            brand, menu = (page.locator(f".frame .{name}").bounding_box() for name in ("brand", "menu"))
            assert brand is not None, path
            assert menu is not None, path
            assert brand["x"] > menu["x"], f"{path}: the navigation does not start on the right"
            check(page, path, wrong)
    assert not wrong, "\n".join(wrong)


def check_in_both_schemes(page: Page, path: str, wrong: list[str]) -> None:
    """Check a page in light colours, and its colours also in the dark scheme."""
    check(page, path, wrong)
    # Reduced motion ends transitions of colours at once.
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    wrong += [f"{path}, dark: {violation}" for violation in page.evaluate(VIOLATIONS, COLOUR_RULES)]
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")


def check(page: Page, path: str, wrong: list[str]) -> None:
    wrong += [f"{path}: {violation}" for violation in page.evaluate(VIOLATIONS)]
    if (shift := page.evaluate("window.shift")) > 0.02:
        wrong.append(f"{path}: layout shift of {shift:.3f}")
    if (over := page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
        wrong.append(f"{path}: {over} px wider than the page")
    wide = page.viewport_size is not None and page.viewport_size["width"] >= 1024
    if wide and path != "/predictions":  # previews show any text, such as ids and encoded files
        wrong += [f"{path}: the word {word} is broken" for word in page.evaluate(BROKEN_WORDS)]


def test_the_colours_are_chosen_and_kept_on_all_pages(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/explore")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator(".menu > summary").click()
    page.get_by_role("radio", name="Dark").check(force=True)
    dark = page.evaluate(colour)
    assert dark != light
    for path in ("/predictions", "/test/stream", "/settings"):
        page.goto(path)
        expect(page.locator("main").first).to_be_visible()
        assert page.evaluate(colour) == dark, path
    page.goto("/test/stream")
    page.locator(".menu > summary").click()
    page.get_by_role("radio", name="Light").check(force=True)
    assert page.evaluate(colour) == light
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert page.evaluate(colour) == light
    page.locator(".menu > summary").click()
    page.get_by_role("radio", name="System").check(force=True)
    assert page.evaluate(colour) == dark


@pytest.mark.parametrize("path", ["/explore", "/test/stream"])
def test_the_content_is_few_stops_of_the_tab_key_away(page: Page, path: str) -> None:
    page.goto(path)
    expect(page.locator("main").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    stops = 0
    while page.evaluate("document.activeElement.closest('header') !== null"):
        page.keyboard.press("Tab")
        stops += 1
        assert stops <= 6, "five stops and the skip link"
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("main").first).to_be_focused()
    page.locator(".links [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url("**/chat")


@pytest.mark.parametrize("path", ["/explore", "/test/stream"])
def test_models_predictions_and_pages_are_found_by_the_keyboard(
    page: Page, client: httpx.Client, path: str
) -> None:
    body = {"input": {"text": "a needle in the haystack"}}
    made = client.post("/v1/models/test/stream/predictions", json=body).json()
    page.goto(path)
    expect(page.locator("main").first).to_be_visible()
    field = page.get_by_role("combobox", name="Find")
    chosen = page.locator("#found [aria-selected=true]")
    page.keyboard.press("/" if path == "/explore" else "Control+k")
    expect(field).to_be_focused()
    page.keyboard.type("transcirbe")
    expect(chosen).to_contain_text("whisper-tiny-en")
    field.fill("needle in")
    expect(chosen).to_contain_text(made["id"])
    field.fill("xqxqxq")
    expect(page.get_by_role("dialog")).to_contain_text("Nothing was found")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Control+k")
    field.fill("statistics")
    expect(chosen).to_contain_text("Usage")
    page.keyboard.press("Enter")
    page.wait_for_url("**/usage")


@pytest.mark.parametrize("path", ["/explore", "/test/stream"])
def test_a_page_says_that_the_appliance_does_not_answer_and_greys_what_is_stale(
    browser: Browser, appliance: Appliance, path: str
) -> None:
    lost = ("Failed to load resource: net::ERR", "htmx:afterRequest", "htmx:sendError")
    with watched(browser, appliance.url, allowed=lost) as page:
        sign_in(page, TOKEN)
        page.goto(path)
        expect(page.locator("main").first).to_be_visible()
        page.route("**/_ui/**", lambda route: route.abort("connectionrefused"))
        page.route("**/explore/cards*", lambda route: route.abort("connectionrefused"))
        expect(page.get_by_text("The appliance does not answer")).to_be_visible()
        expect(page.locator("body.stale")).to_have_count(1)
        page.unroute_all()
        expect(page.get_by_text("The appliance does not answer")).to_be_hidden()
        expect(page.locator("body.stale")).to_have_count(0)


@pytest.mark.parametrize("path", ["/explore", "/test/stream"])
def test_a_page_says_that_the_session_has_ended_and_keeps_what_was_typed(
    browser: Browser, appliance: Appliance, client: httpx.Client, new_token: Callable[..., str], path: str
) -> None:
    secret = new_token("leaves", scope="run", owner="guest")
    ended = ("Response Status Error Code 401",)  # htmx
    with watched(browser, appliance.url, refused=True, allowed=ended) as page:
        sign_in(page, secret)
        page.goto(path)
        field = page.get_by_label("Search models") if path == "/explore" else page.get_by_label("Text").first
        field.fill("typed")
        tokens = client.get("/admin/tokens").json()["results"]
        id = next(each["id"] for each in tokens if each["name"] == "leaves" and not each["revoked_at"])
        client.delete(f"/admin/tokens/{id}")
        link = page.get_by_role("link", name="Sign in again")
        expect(link).to_be_visible()
        expect(field).to_have_value("typed")
        link.click()
        page.wait_for_url(re.compile(r"/signin\?next="))


def test_times_are_those_of_the_reader(browser: Browser, appliance: Appliance, client: httpx.Client) -> None:
    body = {"input": {"text": "x"}}
    client.post("/v1/models/test/stream/predictions", json=body, headers={"Prefer": "wait"})
    with watched(browser, appliance.url, timezone_id="Asia/Tokyo", locale="en-GB") as page:
        sign_in(page, TOKEN)
        page.goto("/predictions")
        time = page.locator("#predictions time").first
        expect(time).to_have_text(re.compile(r"just now|^\d+ (s|min) ago$"))
        expect(time).to_have_attribute("title", re.compile(r"(GMT\+9|JST)$"))
