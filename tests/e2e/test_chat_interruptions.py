"""The chat page when something comes in between: a failed request, another tab, a file still being read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect

from tests.e2e.browsing import sign_in, watched
from tests.e2e.conftest import LANGUAGE_MODEL
from tests.e2e.test_chat_page import BY_HAND, COMPLETIONS, field, last, says, script, send, stored
from tests.support.appliance_process import TOKEN, Appliance, wait_for

pytestmark = pytest.mark.e2e

#: Text files are read when the test calls `read()`.
SLOW_FILES = """
const real = File.prototype.arrayBuffer;
const asked = new Promise((resolve) => { window.read = resolve; });
File.prototype.arrayBuffer = async function () { await asked; return real.call(this); };
"""
NO_SPACE = """
const real = Storage.prototype.setItem;
Storage.prototype.setItem = function (key, value) {
  if (key.includes("unsaved")) throw new DOMException("full", "QuotaExceededError");
  real.call(this, key, value);
};
"""


def saves(state: str) -> Callable[[Request], bool]:
    """Return whether a request stores a conversation whose last message has this state."""

    def matches(request: Request) -> bool:
        if request.method != "PUT" or "/admin/conversations/" not in request.url:
            return False
        return bool(json.loads(request.post_data or "")["messages"][-1].get("state") == state)

    return matches


@pytest.mark.parametrize("state", ["streaming", "interrupted"])
def test_a_failed_request_does_not_end_an_answer(
    browser: Browser, appliance: Appliance, client: httpx.Client, state: str
) -> None:
    messages: list[dict[str, Any]] = [
        {"id": "question1", "parent": None, "role": "user", "text": "Hello"},
        {"id": "answer1", "parent": "question1", "role": "assistant", "text": "Good", "state": state}
        | {"model": LANGUAGE_MODEL, "prediction": "a" * 26},
    ]
    body = {"title": "Hello", "model": LANGUAGE_MODEL, "settings": {}, "leaf": "answer1"}
    for message in messages:
        message["created_at"] = "2026-01-01T00:00:00Z"
    made = client.post("/admin/conversations", json=body | {"messages": messages})
    id = made.raise_for_status().json()["id"]
    replies: list[dict[str, Any]] = [
        {"status": 500, "json": {"detail": "The disk is slow."}},
        {"json": {"status": "processing", "output": [{"choices": [{"delta": {"content": "Good mor"}}]}]}},
        {"json": {"status": "succeeded", "output": [{"choices": [{"delta": {"content": "Good morning"}}]}]}},
    ]
    allowed = ("Failed to load resource: the server responded with a status of 500",)
    with watched(browser, appliance.url, refused=True, allowed=allowed) as page:
        sign_in(page, TOKEN)
        page.route("**/_ui/api/v1/predictions/*", lambda route: route.fulfill(**replies.pop(0)))
        page.goto(f"/chat/{id}")
        expect(last(page).locator(".markdown").last).to_have_text("Good morning")
        expect(last(page).locator(".problem")).to_be_hidden()
        wait_for(lambda: stored(client, page)["messages"][1]["text"] == "Good morning", "the stored answer")
        assert "state" not in stored(client, page)["messages"][1]  # it is complete


def test_a_tab_keeps_what_another_tab_has_chosen(page: Page, client: httpx.Client) -> None:
    answer, _ = script(says("fine"))
    page.context.route(COMPLETIONS, answer)
    page.goto("/chat")
    send(page, "Hello")
    expect(last(page)).to_contain_text("fine")
    wait_for(lambda: "state" not in stored(client, page)["messages"][-1], "the stored answer")
    other = page.context.new_page()
    other.goto(page.url)
    expect(last(other)).to_contain_text("fine")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_role("button", name="Close").click()
    row = page.locator("#conversations li").filter(has=page.locator("a[aria-current]"))
    row.hover()
    row.get_by_role("button", name="Rename").click()
    page.get_by_label("New title").fill("A greeting")
    page.get_by_label("New title").press("Enter")
    wait_for(lambda: stored(client, page)["title"] == "A greeting", "the new title")
    send(other, "Again")
    expect(other).to_have_title("A greeting")
    expect(other.locator("#settings textarea").first).to_have_value("Be brief.")
    wait_for(lambda: len(stored(client, page)["messages"]) == 4, "the second answer")
    kept = stored(client, page)
    assert (kept["title"], kept["settings"]) == ("A greeting", {"system": "Be brief."})


def test_a_message_waits_for_its_files(page: Page) -> None:
    answer, asked = script(says("seen"))
    page.route(COMPLETIONS, answer)
    page.add_init_script(SLOW_FILES)
    page.goto("/chat")
    page.locator("#files").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"buy milk"}
    )
    send(page, "What is this?")
    page.evaluate("read()")
    expect(last(page)).to_contain_text("seen")
    assert [each["messages"][0]["content"] for each in asked] == ["notes.txt:\n\nbuy milk\n\nWhat is this?"]
    expect(page.locator("#attached li")).to_have_count(0)


def test_a_conversation_has_one_answer_at_a_time_and_is_saved_when_it_has_ended(page: Page) -> None:
    page.clock.install()
    page.add_init_script(BY_HAND)
    page.goto("/chat")
    send(page, "First")
    expect(last(page)).to_contain_text("Waiting for the model")
    with page.expect_event("requestfinished", saves("complete")):
        page.evaluate("push('one')")
        page.evaluate("finish()")
    expect(last(page).get_by_role("button", name="Regenerate")).to_be_visible()
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Edited message").fill("Another")
    saved: list[Request] = []
    page.on("requestfinished", lambda request: saved.append(request) if request.method == "PUT" else None)
    with page.expect_event("requestfinished", saves("streaming")):
        send(page, "Second")
    page.evaluate("push('two')")
    expect(last(page)).to_contain_text("two")
    page.clock.fast_forward(60_000)
    submit = page.get_by_label("Edited message").locator("xpath=../div/button[1]")
    submit.click()
    expect(page.locator("#composer-problem")).to_contain_text("The model is still answering.")
    expect(page.get_by_label("Edited message")).to_have_value("Another")
    expect(page.locator(".message")).to_have_count(4)
    assert len(saved) == 1
    with page.expect_event("requestfinished", saves("complete")):
        page.evaluate("finish()")
    submit.click()
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".message.user")).to_contain_text("Another")
    page.evaluate("finish()")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_a_page_whose_changes_are_nowhere_else_says_so(browser: Browser, appliance: Appliance) -> None:
    allowed = ("Failed to load resource: net::ERR_FAILED",)
    with watched(browser, appliance.url, refused=True, allowed=allowed) as page:
        sign_in(page, TOKEN)
        answer, _ = script(says("fine"))
        page.route(COMPLETIONS, answer)
        page.add_init_script(NO_SPACE)

        def lost(route: Route) -> None:
            if route.request.method == "PUT":
                route.abort()
            else:
                route.fallback()

        page.route("**/_ui/api/admin/conversations/*", lost)
        page.goto("/chat")
        send(page, "Hello")
        expect(page.locator(".toast")).to_have_text(
            re.compile("^This browser has no space for the last changes")
        )
        expect(field(page)).to_have_value("")
