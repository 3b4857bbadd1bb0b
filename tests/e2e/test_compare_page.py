"""Comparing models side by side, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.e2e.browsing import sign_in, watched
from tests.support.appliance_process import TOKEN, Appliance, wait_for

pytestmark = pytest.mark.e2e

STREAM, SHAPES = "test/stream", "appliance/tiny-shapes"
HOSTILE = "<img src=x onerror=alert(1)> & more"


def address(prompt: str, *columns: tuple[str, dict[str, Any]], **query: str) -> str:
    pairs = [("prompt", prompt), *query.items()]
    for model, input in columns:
        pairs += [("model", model), ("input", json.dumps(input)), ("run", "")]
    return f"compare?{urlencode(pairs)}"


def column(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name=f"Column {number}", exact=True)


def output(page: Page, number: int) -> Locator:
    return page.get_by_role("region", name=f"Output of column {number}")


def succeeded(page: Page, count: int) -> None:
    expect(page.locator("#columns .badge.succeeded")).to_have_count(count)


def test_settings_are_compared_and_back_and_reload_restore_results(page: Page) -> None:
    page.goto("/explore")
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    page.locator("#prompt").fill(HOSTILE)
    for number in (1, 2):
        column(page, number).get_by_label("Model").select_option(STREAM)
        column(page, number).locator(".settings > summary").click()
    column(page, 2).get_by_label("Repeat").fill("2")
    expect(column(page, 2).get_by_text("(1 changed)")).to_be_visible()
    page.get_by_role("button", name="Run").click()
    succeeded(page, 2)
    expect(output(page, 1)).to_have_text(HOSTILE)
    expect(output(page, 2)).to_have_text(HOSTILE * 2)
    assert page.locator("main img[src=x]").count() == 0
    rows = page.locator("#summary tbody tr")
    expect(rows.nth(1)).to_contain_text("repeat: 2")
    expect(page.locator("#summary td.best").first).to_be_visible()
    first = page.url
    page.reload()
    succeeded(page, 2)
    expect(output(page, 2)).to_have_text(HOSTILE * 2)
    expect(page.locator("#prompt")).to_have_value(HOSTILE)
    expect(column(page, 2).locator("input[id$=repeat]")).to_have_value("2")
    page.locator("#prompt").fill("again")
    page.get_by_role("button", name="Run").click()
    expect(output(page, 1)).to_have_text("again")
    succeeded(page, 2)
    assert page.url != first
    page.go_back()
    expect(output(page, 1)).to_have_text(HOSTILE)
    column(page, 1).get_by_role("link", name="Prediction").click()
    page.wait_for_url("**/p/*")
    page.go_back()
    expect(output(page, 1)).to_have_text(HOSTILE)


def test_outputs_stream_side_by_side_and_a_reload_misses_nothing(page: Page) -> None:
    words = [f"word{number} " for number in range(60)]
    slow = {"chunk_delay": 0.1}
    page.goto(address("".join(words), (STREAM, slow), (STREAM, slow)))
    page.get_by_role("button", name="Run").click()
    for number in (1, 2):
        expect(output(page, number)).to_contain_text("word1 ")
    page.wait_for_url(re.compile(r"run=\w+&.*run=\w+"))
    page.reload()
    for number in (1, 2):
        expect(output(page, number)).to_contain_text("word0 word1 word2 ")
    assert page.locator("#columns .badge.succeeded").count() == 0, "it streams after the reload"
    succeeded(page, 2)
    for number in (1, 2):
        assert (output(page, number).text_content() or "").split() == [word.strip() for word in words]


def test_a_failure_ends_no_other_column_and_all_can_be_stopped(page: Page, client: httpx.Client) -> None:
    slow = {"chunk_delay": 30}
    page.goto(address("one two", (STREAM, {"fail": "on <purpose>"}), (STREAM, {}), (STREAM, slow)))
    page.get_by_role("button", name="Run").click()
    expect(column(page, 1).get_by_role("alert")).to_have_text("on <purpose>")
    expect(column(page, 2).locator(".badge")).to_have_text("succeeded")
    expect(output(page, 3)).to_contain_text("one")
    page.get_by_role("button", name="Stop all").click()
    expect(column(page, 3).locator(".badge")).to_have_text("canceled")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("button", name="Stop all")).to_be_enabled()
    page.get_by_role("button", name="Stop all").click()
    expect(column(page, 3).locator(".badge")).to_have_text("canceled")


def test_a_column_is_added_and_removed_and_wrong_settings_are_named(page: Page) -> None:
    page.goto(address("hello", (STREAM, {"repeat": 3}), (STREAM, {})))
    expect(column(page, 1).get_by_text("(1 changed)")).to_be_visible()
    expect(column(page, 1).get_by_role("button", name="Remove this column")).to_be_disabled()
    page.get_by_role("button", name="Add a column").click()
    column(page, 1).get_by_role("button", name="Remove this column").click()
    expect(page.locator(".column")).to_have_count(2)
    repeat = column(page, 2).locator("input[id$=repeat]")
    column(page, 2).locator(".settings > summary").click()
    repeat.fill("0")
    column(page, 2).locator(".settings > summary").click()
    page.get_by_role("button", name="Run").click()
    expect(repeat).to_be_focused()
    assert repeat.evaluate("control => control.validationMessage") == "Repeat must be at least 1."
    assert page.locator("#columns .badge.succeeded").count() == 0


def test_images_of_one_seed_have_one_size_and_are_enlarged(page: Page, client: httpx.Client) -> None:
    steps = ({"num_inference_steps": 1, "width": 32, "height": 64}, {"num_inference_steps": 2})
    page.goto(address("a red circle", *((SHAPES, each) for each in steps), seed="7"))
    page.get_by_role("button", name="Run").click()
    succeeded(page, 2)
    images = page.locator("#columns .picture img")
    expect(images).to_have_count(2)
    boxes = [images.nth(number).bounding_box() for number in (0, 1)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert (boxes[0]["width"], boxes[0]["height"]) == (boxes[1]["width"], boxes[1]["height"])
    ids = re.findall(r"run=(\w+)", page.url)
    assert [client.get(f"/v1/predictions/{id}").json()["input"]["seed"] for id in ids] == [7, 7]
    images.first.click()
    expect(page.get_by_role("dialog")).to_contain_text("seed 7")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_the_result_is_copied_as_markdown(browser: Browser, appliance: Appliance) -> None:
    with watched(browser, appliance.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        sign_in(page, TOKEN)
        page.goto(address("a | b", (STREAM, {}), (STREAM, {"print": "a|b"})))
        page.get_by_role("button", name="Run").click()
        succeeded(page, 2)
        page.get_by_role("button", name="Copy as Markdown").click()
        expect(page.get_by_text("Copied")).to_be_visible()
        copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("> a | b\n\n| Model | Settings | State |")
    assert "| 2. test/stream | print: a\\|b | succeeded |" in copied
    assert "## 1. test/stream\n\n> a | b\n" in copied


def test_a_secret_is_sent_but_is_in_no_address_and_no_history(page: Page) -> None:
    def with_secret(route: Route) -> None:
        model = route.fetch().json()
        schemas = model["latest_version"]["openapi_schema"]["components"]["schemas"]
        schemas["Input"]["properties"]["print"] |= {"format": "password"}
        route.fulfill(json=model)

    page.route(f"**/_ui/api/v1/models/{STREAM}", with_secret)
    page.goto(address("hello", (STREAM, {"repeat": 2}), (STREAM, {"print": "old-secret"})))
    expect(page).not_to_have_url(re.compile("old-secret"))
    secret = column(page, 2).locator("input[id$=print]")
    expect(secret).to_have_value("old-secret")
    column(page, 2).locator(".settings > summary").click()
    secret.fill("new-secret")
    page.get_by_role("button", name="Add a column").click()
    expect(column(page, 3).locator("input[id$=print]")).to_have_value("new-secret")
    with page.expect_request(lambda request: "new-secret" in (request.post_data or "")):
        page.get_by_role("button", name="Run").click()
    succeeded(page, 3)
    expect(page).to_have_url(re.compile(r"run=\w+.*run=\w+"))
    kept = page.url + page.evaluate("JSON.stringify(history.state)")
    assert "secret" not in kept
    assert '"repeat":2' in kept


def test_a_prompt_that_is_too_long_for_an_address_survives_a_reload(page: Page) -> None:
    prompt = "long " * 4000
    page.goto(address("", (STREAM, {}), (STREAM, {})))
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Run").click()
    succeeded(page, 2)
    page.wait_for_url(re.compile(r"run=\w+&.*run=\w+"))
    assert len(page.url) < 1000
    page.reload()
    expect(page.locator("#prompt")).to_have_value(prompt)
    page.goto(page.url.replace("compare?", "compare?seed=1&"))  # another history entry
    expect(page.locator("#prompt")).to_have_value(prompt)


def test_it_fits_on_a_phone_and_shows_the_result(phone: Page) -> None:
    phone.goto(address("hello", (STREAM, {}), (STREAM, {}), (SHAPES, {}), (STREAM, {})))
    phone.get_by_role("button", name="Run").click()
    succeeded(phone, 4)
    expect(column(phone, 1).locator(".line")).to_be_in_viewport()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


#: Inputs of a model: their schema, the text of their control, and its value.
FIELDS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "choice": ({"enum": ["a", "b"], "default": "a"}, "b", "b"),
    "count": ({"type": "integer", "minimum": 1, "default": 1}, "3", 3),
    "share": ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "0.5", 0.5),
    "words": ({"type": "array", "items": {"type": "string"}}, "x\n\ny", ["x", "y"]),
    "numbers": ({"type": "array", "items": {"type": "integer"}}, "1\n2", [1, 2]),
    "shape": ({"type": "object"}, '{"a": 1}', {"a": 1}),
    "either": ({"anyOf": [{"type": "string"}, {"type": "object"}]}, "plain", "plain"),
    "style": ({"allOf": [{"$ref": "#/components/schemas/Style"}]}, "bold", "bold"),
    "image": ({"type": "string", "format": "uri"}, " https://x/a.png ", "https://x/a.png"),
    "prompt": ({"type": "string", "default": "hello"}, "", ""),
}
USE = """async ([document, input]) => {
    const { Inputs, fieldsOf } = await import(window.document.querySelector("script[src$='/compare.js']").src
        .replace("compare.js", "inputs.js"));
    const form = window.document.createElement("div");
    form.id = "made";
    window.document.querySelector("main").append(form);
    window.inputs = new Inputs(form, fieldsOf(document), input);
}"""


def test_inputs_are_made_from_a_schema(page: Page, tmp_path: Path) -> None:
    properties: dict[str, dict[str, Any]] = {
        name: {**schema, "x-order": order} for order, (name, (schema, *_)) in enumerate(FIELDS.items())
    }
    properties["fast"] = {"type": "boolean", "default": True}
    schemas: dict[str, Any] = {
        "Input": {"properties": properties, "required": ["count"]},
        "Style": {"enum": ["bold", "thin"]},
    }
    page.goto("compare")
    page.evaluate(USE, [{"components": {"schemas": schemas}}, {}])
    assert page.evaluate("inputs.values()") == {"count": 1}
    for name, (_, text, _) in FIELDS.items():
        control = page.locator(f"#input-{name}")
        if control.evaluate("control => control.tagName") == "SELECT":
            control.select_option(text)
        else:
            control.fill(text)
    page.locator("#input-fast").uncheck()
    expected = {name: value for name, (_, _, value) in FIELDS.items()} | {"fast": False}
    assert page.evaluate("inputs.values()") == expected
    assert page.evaluate("inputs.invalid()") is None
    for name, text, problem in (
        ("count", "", "Count is required."),
        ("count", "1.5", "Count must be a whole number."),
        ("shape", "{", "Shape must be JSON"),
    ):
        page.locator(f"#input-{name}").fill(text)
        assert page.evaluate("inputs.invalid()?.validationMessage ?? ''").startswith(problem)
        page.locator(f"#input-{name}").fill(FIELDS[name][1])
    page.evaluate(USE.replace('"made"', '"again"'), [{"components": {"schemas": schemas}}, expected])
    assert page.evaluate("inputs.values()") == expected


def test_files_are_uploaded_by_an_input(page: Page, client: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("uploaded")
    page.goto(address("hello", ("test/files", {}), ("test/files", {})))
    settings = column(page, 1).locator(".settings")
    settings.locator("> summary").click()
    settings.locator(".more > summary").click()
    with page.expect_response("**/v1/files") as sent:
        settings.get_by_label("Upload a file for File", exact=True).set_input_files(file)
    url = sent.value.json()["urls"]["get"]
    expect(settings.locator("input[id$=-file]")).to_have_value(url)
    page.get_by_role("button", name="Run").click()
    succeeded(page, 2)
    run = re.findall(r"run=(\w+)", page.url)[0]

    def kept() -> bool:
        return bool(client.get(f"/v1/predictions/{run}").json()["input"]["file"] == url)

    wait_for(kept, "the input")
