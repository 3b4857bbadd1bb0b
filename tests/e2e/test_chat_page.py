"""The chat page in a real browser: with the small language model, and with answers that tests wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import APIResponse, Browser, Locator, Page, Route, expect

from tests.e2e.browsing import sign_in, sign_out, watched
from tests.e2e.conftest import LANGUAGE_MODEL
from tests.support.appliance_process import TOKEN, Appliance, wait_for

pytestmark = pytest.mark.e2e

COMPLETIONS = "**/_ui/api/openai/v1/chat/completions"
ALL_STORED = "() => !Object.keys(localStorage).some((key) => key.includes('unsaved'))"
ANSWER = """# Sums

Here is **code**:

```python
def add(a, b):
    return a + b
```

| a | b |
|---|---|
| 1 | 2 |

<img src="https://elsewhere.example/x.png" onerror="document.title='broken'">

![a chart](https://elsewhere.example/chart.png) [bad](javascript:document.title='broken')
"""


def script(*answers: list[dict[str, Any]]) -> tuple[Callable[[Route], None], list[dict[str, Any]]]:
    """Return a handler that answers requests with these chunks in turn, and the list of request bodies."""
    asked: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or ""))
        chunks = answers[min(len(asked), len(answers)) - 1]
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        route.fulfill(body=f"{text}data: [DONE]\n\n", content_type="text/event-stream")

    return answer, asked


def says(text: str, **delta: Any) -> list[dict[str, Any]]:
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return [
        {"choices": [{"delta": {"content": text, **delta}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]


def field(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def send(page: Page, text: str) -> None:
    field(page).fill(text)
    field(page).press("Enter")


def reload(page: Page) -> None:
    """Wait until all changes are stored, then reload. Otherwise the new page may get status 409."""
    page.wait_for_function(ALL_STORED)
    page.reload()


def last(page: Page) -> Locator:
    return page.locator(".message").last


def store_two_answers(page: Page) -> None:
    """Ask "Count" in a new conversation. It is answered with "one", and again with "two"."""
    answer, _ = script(says("one"), says("two"))
    page.route(COMPLETIONS, answer)
    page.goto("/chat")
    send(page, "Count")
    expect(last(page)).to_contain_text("one")
    last(page).get_by_role("button", name="Regenerate").click()
    expect(last(page)).to_contain_text("2 of 2")
    page.wait_for_function(ALL_STORED)


def stored(client: httpx.Client, page: Page) -> dict[str, Any]:
    """The conversation that the page shows, as the appliance has it."""
    id = page.url.split("/chat/")[1].split("?")[0]
    found: dict[str, Any] = client.get(f"/admin/conversations/{id}").raise_for_status().json()
    return found


@pytest.fixture(autouse=True)
def no_conversations(client: httpx.Client) -> None:
    """The list is empty before each test."""
    for each in client.get("/admin/conversations").json()["results"]:
        assert client.delete(f"/admin/conversations/{each['id']}").status_code == 204


def test_a_model_answers_and_everything_is_there_after_a_reload(page: Page, client: httpx.Client) -> None:
    page.goto(f"/chat?model={LANGUAGE_MODEL}")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Maximum tokens").fill("12")
    page.get_by_label("System prompt").fill("Answer briefly.")
    page.get_by_role("button", name="Close").click()
    send(page, "Name three fruits.")
    expect(page).to_have_url(re.compile(r"/chat/[a-z0-9]{26}\?model="))
    expect(last(page).get_by_role("button", name="Regenerate")).to_be_visible()
    expect(last(page)).to_contain_text(re.compile(r"\d+ tokens read, \d+ written · first token after"))
    text = last(page).locator(".markdown").last.inner_text()
    assert text.strip()
    expect(page.locator("#spoken")).not_to_be_empty()
    reload(page)
    expect(last(page).locator(".markdown").last).to_have_text(text, use_inner_text=True)
    expect(page.locator("#conversations a[aria-current]")).to_have_text("Name three fruits.")
    kept = stored(client, page)
    assert kept["settings"] == {"system": "Answer briefly.", "max_tokens": 12}
    assert "state" not in kept["messages"][1]  # it is complete
    assert kept["messages"][1]["model"] == LANGUAGE_MODEL
    record = client.get(f"/v1/predictions/{kept['messages'][1]['prediction']}").json()
    assert record["input"]["messages"][0] == {"role": "system", "content": "Answer briefly."}
    page.get_by_role("link", name="Open the prediction").click()
    page.wait_for_url(f"**/p/{record['id']}")


def test_a_stopped_answer_keeps_its_text_and_ends_its_prediction(page: Page, client: httpx.Client) -> None:
    page.goto(f"/chat?model={LANGUAGE_MODEL}")
    send(page, "Write a long story about the sea.")
    expect(last(page).locator(".block").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(last(page)).to_contain_text("You stopped this answer.")
    expect(last(page).get_by_role("button", name="Regenerate")).to_be_visible()
    reload(page)
    expect(last(page)).to_contain_text("You stopped this answer.")
    answer = stored(client, page)["messages"][1]
    assert (answer["state"], bool(answer["text"])) == ("stopped", True)
    record = client.get(f"/v1/predictions/{answer['prediction']}").json()
    assert record["status"] == "canceled"


def test_what_came_before_a_reload_is_not_lost(
    browser: Browser, appliance: Appliance, client: httpx.Client
) -> None:
    # The page that is left and the new one may both store the conversation: one of them then gets status 409.
    with watched(browser, appliance.url, refused=True) as page:
        sign_in(page, TOKEN)
        page.goto(f"/chat?model={LANGUAGE_MODEL}")
        send(page, "Write a long story about a mountain.")
        expect(last(page).locator(".block").first).to_be_visible()
        seen = last(page).locator(".markdown").last.inner_text()
        page.reload()
        expect(last(page)).to_contain_text("This answer is incomplete")
        assert last(page).locator(".markdown").last.inner_text().startswith(seen[:20])
        wait_for(
            lambda: stored(client, page)["messages"][1]["state"] == "interrupted", "the end of the answer"
        )
        assert stored(client, page)["messages"][1]["text"].startswith(seen[:20])


def test_markdown_is_shown_and_nothing_of_it_can_do_harm(page: Page) -> None:
    answer, _ = script(says(ANSWER, reasoning="First I think."))
    page.route(COMPLETIONS, answer)
    page.goto("/chat")
    send(page, "Sum, please")
    expect(last(page).get_by_role("heading", name="Sums")).to_be_visible()
    expect(last(page).locator("code .hljs-keyword").first).to_have_text("def")
    expect(last(page).get_by_role("cell", name="2")).to_be_visible()
    expect(last(page).get_by_text("<img src=")).to_be_visible()  # HTML stays text
    expect(last(page).locator("img")).to_have_count(0)
    chart = last(page).get_by_role("link", name="a chart")
    expect(chart).to_have_attribute("rel", "noopener noreferrer")
    assert last(page).get_by_text("bad", exact=True).get_attribute("href") is None
    assert page.title() == "Sum, please"
    expect(last(page).get_by_text("First I think.")).to_be_hidden()
    last(page).get_by_text("Reasoning").click()
    expect(last(page).get_by_text("First I think.")).to_be_visible()
    last(page).get_by_role("button", name="Copy code").click()
    expect(last(page).get_by_role("button", name="Copied")).to_be_visible()


def test_repeated_answers_and_edited_messages_are_branches(page: Page, client: httpx.Client) -> None:
    answer, asked = script(says("one"), says("two"), says("three"))
    page.route(COMPLETIONS, answer)
    page.goto("/chat")
    send(page, "Count")
    expect(last(page)).to_contain_text("one")
    last(page).get_by_role("button", name="Regenerate").click()
    expect(last(page)).to_contain_text("two")
    expect(last(page)).to_contain_text("2 of 2")
    last(page).get_by_role("button", name="Show the previous version").click()
    expect(last(page).locator(".markdown").last).to_have_text("one")
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Edited message").fill("Count on")
    page.get_by_label("Edited message").locator("xpath=../div/button[1]").click()
    expect(last(page)).to_contain_text("three")
    expect(page.locator(".message.user")).to_contain_text("2 of 2")
    assert asked[2]["messages"] == [{"role": "user", "content": "Count on"}]
    page.locator(".message.user").get_by_role("button", name="Show the previous version").click()
    expect(last(page).locator(".markdown").last).to_have_text("two")
    reload(page)
    expect(last(page).locator(".markdown").last).to_have_text("two")
    assert len(stored(client, page)["messages"]) == 5


def test_a_page_made_before_a_change_was_stored_shows_the_change(page: Page) -> None:
    store_two_answers(page)
    before = page.request.get(page.url).text()
    last(page).get_by_role("button", name="Show the previous version").click()
    page.wait_for_function(ALL_STORED)
    page.route(page.url, lambda route: route.fulfill(body=before, content_type="text/html"))
    page.reload()
    expect(last(page).locator(".markdown").last).to_have_text("one")


def test_a_change_made_while_another_is_being_stored_survives_a_reload(
    browser: Browser, appliance: Appliance, client: httpx.Client, signed_in: Any
) -> None:
    """After the reload, the later change is sent with an old revision and gets 409; the page merges both."""
    with watched(browser, appliance.url, refused=True, storage_state=signed_in) as page:
        store_two_answers(page)
        before = page.request.get(page.url).text()
        received: list[APIResponse] = []  # the page is left before it gets the response
        page.route("**/admin/conversations/*", lambda route: received.append(route.fetch()), times=1)
        last(page).get_by_role("button", name="Show the previous version").click()
        wait_for(lambda: page.evaluate("true") and received, "the stored change")
        assert received[0].status == 200
        last(page).get_by_role("button", name="Show the next version").click()
        expect(last(page).locator(".markdown").last).to_have_text("two")
        page.route(page.url, lambda route: route.fulfill(body=before, content_type="text/html"))
        page.reload()
        expect(last(page).locator(".markdown").last).to_have_text("two")
        page.wait_for_function(ALL_STORED)
        found = stored(client, page)
        assert (found["leaf"], len(found["messages"])) == (found["messages"][-1]["id"], 3)


def test_tool_calls_are_shown_and_their_results_sent(page: Page) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    answer, asked = script(says("", tool_calls=[call]), says("It rains."))
    page.route(COMPLETIONS, answer)
    page.goto("/chat")
    page.get_by_role("button", name="Settings").click()
    tools = page.get_by_label("Tools, as JSON")
    tools.fill("[{")
    tools.blur()
    expect(page.locator("#tools-problem")).to_contain_text("not valid JSON")
    tools.fill('[{"type": "function", "function": {"name": "weather"}}]')
    tools.blur()
    expect(page.locator("#tools-problem")).to_be_hidden()
    send(page, "Weather in Oslo?")
    expect(last(page)).to_contain_text("The model calls the tool weather with")
    page.get_by_label("Result of weather").fill("rain")
    page.get_by_role("button", name="Send the results").click()
    expect(last(page)).to_contain_text("It rains.")
    assert asked[0]["tools"][0]["function"]["name"] == "weather"
    assert asked[1]["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert asked[1]["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": "rain"}


def test_files_are_attached_and_images_only_for_models_that_accept_them(page: Page, tmp_path: Path) -> None:
    answer, asked = script(says("seen"))
    page.route(COMPLETIONS, answer)
    (tmp_path / "notes.txt").write_text("buy milk")
    Image.new("RGB", (4, 4), (220, 20, 10)).save(tmp_path / "dot.png")
    page.goto("/chat")
    page.locator("#files").set_input_files([tmp_path / "dot.png", tmp_path / "notes.txt"])
    expect(page.locator("#composer-problem")).to_contain_text("dot.png: this model does not accept images")
    expect(page.locator("#attached li")).to_have_text([re.compile("notes.txt")])

    def with_images(route: Route) -> None:
        reply = route.fetch()
        route.fulfill(response=reply, body=reply.text().replace('"images": false', '"images": true'))

    page.route(re.compile(r"/chat(\?|$)"), with_images)
    page.reload()
    expect(page.locator("#attached li")).to_have_text([re.compile("notes.txt")])  # the draft is kept
    page.locator("#files").set_input_files(tmp_path / "dot.png")
    expect(page.locator("#attached li")).to_have_count(2)
    send(page, "What is this?")
    expect(last(page)).to_contain_text("seen")
    image, text = asked[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] == "notes.txt:\n\nbuy milk\n\nWhat is this?"
    expect(page.locator(".message.user img")).to_have_attribute("alt", "dot.png")
    expect(page.locator("#attached li")).to_have_count(0)


def test_nothing_typed_or_received_is_lost(
    browser: Browser, appliance: Appliance, client: httpx.Client
) -> None:
    with watched(
        browser, appliance.url, refused=True, allowed=("Failed to load resource: net::ERR_FAILED",)
    ) as page:
        sign_in(page, TOKEN)
        answer, _ = script(says("fine"))
        page.route(COMPLETIONS, answer)
        page.goto("/chat")
        send(page, "Hello")
        expect(last(page)).to_contain_text("fine")
        page.unroute(COMPLETIONS)
        page.route("**/_ui/api/**", lambda route: route.abort())  # the connection is lost
        send(page, "Are you there?")
        expect(page.locator("#connection")).to_contain_text("does not answer")
        expect(last(page)).to_contain_text("This answer is incomplete")
        field(page).fill("half a sent")
        page.unroute("**/_ui/api/**")
        page.reload()
        expect(page.locator(".message.user").last).to_contain_text("Are you there?")
        expect(field(page)).to_have_value("half a sent")
        page.context.clear_cookies()  # the session ends
        send(page, "half a sentence")
        expect(page.locator("#connection")).to_contain_text("Your session has ended.")
        page.get_by_role("link", name="Sign in again").click()
        page.get_by_label("API token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".message.user").last).to_contain_text("half a sentence")
        page.wait_for_load_state("networkidle")
        assert [each["text"] for each in stored(client, page)["messages"] if each["role"] == "user"] == [
            "Hello", "Are you there?", "half a sentence",
        ]  # fmt: skip


def test_the_list_searches_renames_and_deletes(page: Page, client: httpx.Client) -> None:
    answer, _ = script(says("yes"))
    page.route(COMPLETIONS, answer)
    for title in ("Apples", "Pears"):
        page.goto("/chat")
        send(page, title)
        expect(last(page)).to_contain_text("yes")
    rows = page.locator("#conversations li")
    expect(rows.locator("a")).to_have_text(["Pears", "Apples"])
    page.get_by_label("Search in titles").fill("app")
    expect(rows.locator("a")).to_have_text(["Apples"])
    rows.first.hover()
    page.get_by_role("button", name="Rename Apples").click()
    page.get_by_label("New title").fill("Apples <b>green</b>")
    page.get_by_label("New title").press("Enter")
    expect(rows.locator("a")).to_have_text(["Apples <b>green</b>"])
    rows.locator("a").click()
    expect(page.locator(".message.user")).to_contain_text("Apples")
    expect(page).to_have_title("Apples <b>green</b>")
    page.go_back()
    expect(page.locator(".message.user")).to_contain_text("Pears")
    page.get_by_label("Search in titles").fill("")
    rows.nth(0).hover()
    page.get_by_role("button", name="Delete Pears").click()
    page.get_by_role("button", name="Keep").click()
    expect(rows).to_have_count(2)
    id = stored(client, page)["id"]
    page.get_by_role("button", name="Delete Pears").click()
    page.get_by_role("button", name="Delete", exact=True).last.click()
    expect(rows.locator("a")).to_have_text(["Apples <b>green</b>"])
    expect(page).to_have_url(re.compile(r"/chat\?"))
    assert client.get(f"/admin/conversations/{id}").status_code == 404


def test_a_conversation_is_exported(page: Page) -> None:
    answer, _ = script(says("**Paris**"))
    page.route(COMPLETIONS, answer)
    page.goto("/chat")
    send(page, "Capital of France?")
    expect(last(page)).to_contain_text("Paris")
    with page.expect_download() as markdown:
        page.get_by_label("Export this conversation").select_option("markdown")
    assert markdown.value.suggested_filename == "Capital of France.md"
    text = Path(markdown.value.path()).read_text()
    assert text.startswith("# Capital of France?\n\n## You\n\nCapital of France?\n\n## ")
    assert text.endswith("\n\n**Paris**\n")
    with page.expect_download() as exported:
        page.get_by_label("Export this conversation").select_option("json")
    found = json.loads(Path(exported.value.path()).read_text())
    assert [each["role"] for each in found["messages"]] == ["user", "assistant"]


def test_another_account_in_the_same_browser_sees_nothing(
    browser: Browser, appliance: Appliance, new_token: Callable[..., str]
) -> None:
    other = new_token("visitor", owner="visitor", scope="run")
    with watched(browser, appliance.url, refused=True) as page:
        sign_in(page, TOKEN)
        answer, _ = script(says("a secret answer"))
        page.route(COMPLETIONS, answer)
        page.goto("/chat")
        send(page, "A secret question")
        expect(last(page)).to_contain_text("a secret answer")
        private = page.url
        field(page).fill("a secret draft")
        page.goto("/chat")
        field(page).fill("another secret draft")
        sign_out(page)
        sign_in(page, other)
        page.goto("/chat")
        expect(page.get_by_text("There are no conversations yet.")).to_be_visible()
        expect(field(page)).to_have_value("")
        assert "secret" not in page.content()
        page.goto(private)
        expect(page.get_by_role("heading", name="Not found")).to_be_visible()
        assert "secret" not in page.content()


def test_on_a_phone_the_list_is_behind_a_button(phone: Page) -> None:
    answer, _ = script(says("word " * 400))
    phone.route(COMPLETIONS, answer)
    phone.goto("/chat")
    send(phone, "Hi")
    expect(last(phone)).to_contain_text("tokens read")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    scroll = phone.locator("#scroll")
    assert scroll.evaluate("(one) => one.scrollHeight - one.scrollTop - one.clientHeight") < 80
    row = phone.locator("#conversations a")
    expect(row).to_be_hidden()
    phone.get_by_role("button", name="Chats").click()
    expect(row).to_be_visible()
    phone.get_by_role("link", name="New chat").click()
    expect(row).to_be_hidden()
    expect(phone.get_by_text("Write a message to begin.")).to_be_visible()
    expect(field(phone)).to_be_in_viewport()


#: Answers arrive when the test calls `push(text)`, and end when it calls `finish()`.
BY_HAND = """
const real = window.fetch;
window.fetch = (url, options) => {
  if (!String(url).includes("chat/completions")) return real(url, options);
  let controller;
  const stream = new ReadableStream({ start: (given) => { controller = given; } });
  const send = (text) => controller.enqueue(new TextEncoder().encode(`data: ${text}\\n\\n`));
  window.push = (content) => send(JSON.stringify({ choices: [{ delta: { content } }] }));
  window.finish = () => { send("[DONE]"); controller.close(); };
  return Promise.resolve(new Response(stream, { headers: { "content-type": "text/event-stream" } }));
};
"""


def test_the_page_follows_the_answer_unless_its_reader_has_scrolled_up(page: Page) -> None:
    page.add_init_script(BY_HAND)
    page.goto("/chat")
    send(page, "Write a lot")
    expect(last(page)).to_contain_text("Waiting for the model")
    at_end = "(one) => one.scrollHeight - one.scrollTop - one.clientHeight < 80"
    scroll = page.locator("#scroll")
    page.evaluate("push('first\\n\\n'.repeat(100))")
    expect(last(page).locator(".block")).to_have_count(100)
    assert scroll.evaluate(at_end)
    scroll.evaluate("(one) => { one.scrollTop = 0 }")
    newest = page.get_by_role("button", name="Go to the newest text")
    page.evaluate("push('second\\n\\n'.repeat(100))")
    expect(last(page).locator(".block")).to_have_count(200)
    expect(newest).to_be_visible()
    assert scroll.evaluate("(one) => one.scrollTop") == 0
    newest.click()
    assert scroll.evaluate(at_end)
    expect(page.locator("#spoken")).to_be_empty()  # screen readers do not read every word
    page.evaluate("push('the end')")
    page.evaluate("finish()")
    expect(page.locator("#spoken")).to_contain_text("the end")
    expect(newest).to_be_hidden()
    assert scroll.evaluate(at_end)


def test_a_conversation_deleted_elsewhere_leaves_nothing_in_the_browser(
    browser: Browser, appliance: Appliance, client: httpx.Client
) -> None:
    # The page may still be storing the conversation when it is deleted: it then gets status 404.
    with watched(browser, appliance.url, refused=True) as page:
        sign_in(page, TOKEN)
        answer, _ = script(says("fine"))
        page.route(COMPLETIONS, answer)
        page.goto("/chat")
        send(page, "Hello")
        expect(last(page)).to_contain_text("fine")
        field(page).fill("a private draft")
        assert "a private draft" in page.evaluate("JSON.stringify(localStorage)")
        client.delete(f"/admin/conversations/{stored(client, page)['id']}")
        page.goto("/chat")
        expect(page.get_by_text("There are no conversations yet.")).to_be_visible()
        assert "a private draft" not in page.evaluate("JSON.stringify(localStorage)")
