"""A model's page in a real browser: its form, its output while it comes, and hostile texts in both."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.browsing import fill, sign_in, status, watched
from tests.e2e.conftest import COMMAND, LANGUAGE_MODEL
from tests.support.appliance_process import PATIENCE, TOKEN, Appliance, fetch, free_port, wait_for

pytestmark = pytest.mark.e2e

STREAM = "test/stream"

EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>'

#: Where things are: none of it moves while output comes, nor when the state does.
PLACES = """() => [document.querySelector("#history").offsetTop, document.querySelector("#output").offsetTop,
    document.querySelector("#output").offsetHeight]"""


def complete(page: Page, path: str) -> None:
    """Open a model's page, and wait until all of it is there."""
    page.goto(path)
    expect(page.locator(".heading .badge").first).to_be_visible()


def shown(page: Page) -> str:
    return page.locator("#output").inner_text()


def test_a_language_models_text_is_seen_while_it_streams(page: Page) -> None:
    complete(page, f"/{LANGUAGE_MODEL}")
    fill(page, "prompt", "Count from one to forty in words.")
    fill(page, "max_tokens", "120")
    fill(page, "min_tokens", "60")  # the model chooses its words at random, and may stop after a few
    page.locator("#run").click()
    places = page.evaluate(PLACES)
    expect(page.locator("#output")).to_have_text(re.compile(".{6}", re.DOTALL))
    early = shown(page)
    running = status(page).inner_text()
    expect(status(page)).to_have_text("succeeded")
    whole = shown(page)
    assert running == "processing"
    assert whole.startswith(early.rstrip())
    assert len(whole) > len(early)
    assert page.evaluate(PLACES) == places
    page.get_by_role("tab", name="Code").click()
    expect(page.locator("#code-python")).to_contain_text("Count from one to forty in words.")
    expect(page.locator("#code-python")).to_contain_text('"max_tokens": 120')
    page.get_by_role("tab", name="OpenAI").click()
    expect(page.locator("#code-openai")).to_contain_text("/openai/v1")


def test_the_state_of_a_model_moves_nothing_when_it_comes(page: Page) -> None:
    asked: list[Route] = []
    holding = True

    def take(route: Route) -> None:
        if holding:
            asked.append(route)
        else:
            route.continue_()

    page.route(re.compile("/(state|runs)$"), take)
    page.goto("/test/stream")
    while not asked:  # the page is complete before it asks
        page.wait_for_timeout(50)
    places = page.evaluate(PLACES)
    holding = False
    for route in asked:
        route.continue_()
    expect(page.locator(".heading .badge").first).to_be_visible()
    assert page.evaluate(PLACES) == places


def test_an_image_appears_and_is_the_one_that_was_asked_for(page: Page, tmp_path: Path) -> None:
    page.goto("/appliance/tiny-shapes")
    fill(page, "prompt", "a large red square on a white background")
    page.locator("#run").click()
    image = page.locator("#media img")
    expect(image).to_be_visible()
    expect(image).to_be_in_viewport()  # however long the form beside it is
    expect(status(page)).to_have_text("succeeded")
    expect(image).to_have_js_property("naturalWidth", 128)
    with page.expect_download() as download:
        page.locator("#media a[download]").click()
    download.value.save_as(tmp_path / "drawn")
    drawn = Image.open(tmp_path / "drawn").convert("RGB")
    red, green, blue = drawn.getpixel((64, 64))  # type: ignore[misc] # three numbers
    assert red > 150 > max(green, blue)
    assert min(drawn.getpixel((1, 1))) > 200  # type: ignore[arg-type] # three numbers


def test_one_is_cancelled_and_texts_stay_texts(page: Page) -> None:
    page.goto("/test/stream")
    fill(page, "text", f"{EVIL} " * 40)
    fill(page, "chunk_delay", "30")
    fill(page, "print", EVIL)
    page.locator("#run").click()
    expect(page.locator("#output")).to_contain_text("<img")
    page.locator("#cancel").click()
    expect(status(page)).to_have_text("canceled")
    expect(page.locator("#run")).to_be_enabled()
    fill(page, "fail", EVIL)
    fill(page, "chunk_delay", "0")
    page.locator("#run").click()
    expect(page.locator("#run-error")).to_contain_text(EVIL)
    page.get_by_role("tab", name="Code").click()
    expect(page.locator("#code-python")).to_contain_text("onerror")
    page.get_by_role("tab", name="Readme").click()
    expect(page.get_by_role("heading", name="Streams")).to_be_visible()
    assert page.evaluate("window.evil") is None


def test_a_file_is_uploaded_and_given_back(page: Page, tmp_path: Path) -> None:
    name = "it's <b>&.txt"
    (tmp_path / name).write_text("in the file")
    page.goto("/test/files")
    page.locator("#input-file-file").set_input_files(tmp_path / name)
    expect(page.locator("#input-file")).to_have_value(re.compile("/v1/files/"))
    page.locator("#run").click()
    expect(status(page)).to_have_text("succeeded")
    downloads = page.locator("#media a[download]")
    expect(downloads).to_have_count(1)
    with page.expect_download() as download:
        downloads.click()
    download.value.save_as(tmp_path / "back")
    assert (tmp_path / "back").read_text() == "in the file"


def test_an_earlier_prediction_fills_the_form(page: Page, client: httpx.Client) -> None:
    created = client.post(
        "/v1/predictions", json={"version": "test/stream", "input": {"text": "as before", "repeat": 2}}
    ).json()
    page.goto(f"/test/stream?from={created['id']}")
    expect(page.locator("#input-text")).to_have_value("as before")
    expect(page.locator("#input-repeat")).to_have_value("2")


def test_a_refused_run_says_what_to_do(browser: Browser, appliance: Appliance) -> None:
    no_memory = ("Failed to load resource: the server responded with a status of 503",)
    with watched(browser, appliance.url, refused=True, allowed=no_memory) as page:
        sign_in(page, TOKEN)
        page.goto("/test/too-big")
        page.locator("#run").click()
        expect(page.locator("#run-error")).to_contain_text("lower its memory in models.yaml")
        expect(page.locator("#run")).to_be_enabled()


def test_the_form_can_be_used_on_a_phone(phone: Page) -> None:
    phone.goto("/test/stream")
    fill(phone, "text", "small words")
    phone.locator("#run").click()
    expect(status(phone)).to_have_text("succeeded")
    assert shown(phone) == "small words"
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_is_said_of_a_long_wait_moves_nothing_on_a_phone(phone: Page, client: httpx.Client) -> None:
    model = "test/one-at-a-time"
    busy = client.post(f"/v1/models/{model}/predictions", json={"input": {"text": "x", "delay": 3000}}).json()
    complete(phone, f"/{model}")
    fill(phone, "text", "small words")
    places = phone.evaluate(PLACES)
    phone.locator("#run").click()
    expect(phone.locator(".run-status .said")).to_contain_text("waiting for its turn, position 1")
    assert phone.evaluate(PLACES) == places
    client.post(busy["urls"]["cancel"])
    expect(status(phone)).to_have_text("succeeded")
    assert phone.evaluate(PLACES) == places
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.fixture
def demo(appliance: Appliance, tmp_path: Path) -> Iterator[str]:
    """The address of a demo of two models."""
    port = free_port()
    with (tmp_path / "demo.log").open("w") as log:
        process = subprocess.Popen(
            [COMMAND, "demo", "test/files", STREAM, "--port", str(port), "--runs-per-hour", "2"],
            env=appliance.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "demo.log").read_text()
        try:
            return fetch(url).status_code == 303
        except httpx.HTTPError:
            return False

    wait_for(answers, "the demo")
    yield url
    process.terminate()
    process.wait(PATIENCE)


def test_a_demo_is_its_models_in_a_frame_and_nothing_else(
    browser: Browser, demo: str, tmp_path: Path
) -> None:
    with watched(browser, demo) as page:
        shown = f'<link rel="icon" href="data:,"><iframe src="{demo}/" width="1000" height="900"></iframe>'
        page.route(f"{demo}/portal", lambda route: route.fulfill(body=shown, content_type="text/html"))
        page.goto(f"{demo}/portal")
        frame = page.frame_locator("iframe")
        expect(frame.get_by_role("heading", name="test/files")).to_be_visible()
        frame.locator("#input-text textarea").fill("shown around")
        frame.locator("#run").click()
        expect(frame.locator(".run-status .badge")).to_have_text("succeeded")
        with page.expect_download() as download:
            frame.locator("#media a[download]").click()
        download.value.save_as(tmp_path / "made")
        assert (tmp_path / "made").read_text() == "shown around"
        assert frame.locator("a[href*='/p/'], .frame form").count() == 0
        frame.get_by_role("link", name=STREAM).click()
        expect(frame.get_by_role("heading", name=STREAM)).to_be_visible()
        for result in ("succeeded", "Each visitor can run this demo 2 times in an hour"):
            frame.locator("#run").click()
            expect(frame.locator(".run-status").first).to_contain_text(result)
    for path in ("/explore", "/v1/account", "/admin/status"):
        assert fetch(f"{demo}{path}").status_code == 404


def test_reloading_and_going_back_show_the_run_again(page: Page) -> None:
    complete(page, "/test/stream")
    fill(page, "text", "word ")
    fill(page, "repeat", "60")
    fill(page, "chunk_delay", "0.05")
    page.locator("#run").click()
    output = page.locator("#output")
    expect(output).to_have_text(re.compile("word word"))
    expect(page).to_have_url(re.compile(r"/test/stream\?run=[a-z0-9]{26}$"))
    page.reload()
    expect(output).to_have_text(re.compile("word word"))
    expect(page.locator("#input-repeat")).to_have_value("60")
    expect(status(page)).to_have_text("succeeded")
    whole = shown(page)
    assert whole.count("word") == 60
    page.goto("/explore")
    page.go_back()
    expect(output).to_have_text(whole)


def test_what_was_typed_is_there_after_another_page(page: Page) -> None:
    complete(page, "/test/stream")
    fill(page, "text", "not sent yet")
    page.goto("/explore")
    complete(page, "/test/stream")
    expect(page.locator("#input-text")).to_have_value("not sent yet")
    page.locator("#run").click()
    expect(page.locator("#output")).to_have_text("not sent yet")


def test_on_a_phone_run_leads_to_the_output(phone: Page) -> None:
    complete(phone, "/test/files")
    output = phone.locator(".result")
    expect(output).not_to_be_in_viewport()
    phone.locator("#run").click()
    expect(output).to_be_in_viewport()
    expect(status(phone)).to_have_text("succeeded")


def test_labels_of_files_do_not_cover_the_run_button(phone: Page) -> None:
    complete(phone, "/test/files")
    for place in range(0, 800, 40):
        phone.evaluate("place => scrollTo(0, place)", place)
        covered = phone.evaluate(
            """() => { const box = document.querySelector("#run").getBoundingClientRect();
            const there = document.elementFromPoint(box.x + 20, box.y + box.height / 2);
            return there?.closest("#run") === null }"""
        )
        assert not covered, place


def test_a_problem_is_shown_beside_its_input(page: Page) -> None:
    complete(page, "/test/stream")
    fill(page, "repeat", "1.5")
    page.locator("#run").click()
    expect(page.locator("#input-repeat-error")).to_have_text("Repeat must be a whole number.")
    expect(page.locator("#input-repeat")).to_be_focused()
    expect(status(page)).to_have_text("not run yet")
    fill(page, "repeat", "2")
    expect(page.locator("#input-repeat-error")).to_be_empty()


def test_a_refusal_of_the_api_is_shown_beside_the_input_that_it_names(
    browser: Browser, appliance: Appliance
) -> None:
    named = {"type": "invalid", "field": "input.text", "description": "is not polite"}
    body = {"detail": "- input.text: is not polite", "status": 422, "invalid_fields": [named]}
    with watched(browser, appliance.url, refused=True) as page:
        sign_in(page, TOKEN)
        complete(page, "/test/stream")
        page.route("**/v1/predictions", lambda route: route.fulfill(status=422, json=body))
        page.locator("#input-text").press("Control+Enter")
        expect(page.locator("#input-text-error")).to_have_text("is not polite")
        expect(page.locator("#run-error")).to_be_empty()
        expect(page.locator("#run")).to_be_enabled()


def test_a_run_is_repeated_and_its_output_is_used_as_an_input(page: Page) -> None:
    complete(page, "/test/stream")
    fill(page, "text", "made of words")
    fill(page, "repeat", "2")
    page.locator("#run").click()
    expect(status(page)).to_have_text("succeeded")
    first = page.locator(".runs li").filter(has_text="made of wordsmade of words").first
    first.get_by_role("button", name="Use as an input").click()
    page.get_by_role("button", name="Text (this model)").click()
    expect(page.locator("#input-text")).to_have_value("made of wordsmade of words")
    fill(page, "repeat", "1")
    first.get_by_role("button", name="Run again").click()
    expect(page.locator("#input-text")).to_have_value("made of words")
    expect(page.locator("#input-repeat")).to_have_value("2")
    expect(page.locator("#output")).to_have_text("made of wordsmade of words")


def test_files_and_open_tabs_are_there_after_another_page(page: Page, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    complete(page, "/test/files")
    page.locator("#input-file-file").set_input_files(tmp_path / "kept.txt")
    expect(page.locator("#input-file")).to_have_value(re.compile("/v1/files/"))
    page.get_by_role("tab", name="Code", exact=True).click()
    expect(page.locator("#code-python")).to_contain_text('open("kept.txt", "rb")')
    page.goto("/explore")
    page.go_back()
    expect(page.get_by_role("tab", name="Code", exact=True)).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Run", exact=True).click()
    expect(page.locator("#input-file")).to_have_value(re.compile("/v1/files/"))


def test_a_recording_of_the_microphone_is_an_input(
    browser: Browser, appliance: Appliance, client: httpx.Client, signed_in: Any
) -> None:
    context = {"storage_state": signed_in, "permissions": ["microphone"]}
    with watched(browser, appliance.url, **context) as page:
        complete(page, "/appliance/whisper-tiny-en")
        record = page.locator("#inputs .record")
        record.click()
        expect(record).to_have_text("Stop")
        page.wait_for_timeout(2500)  # what is recorded: two beeps
        record.click()
        expect(record).to_have_text("Record")
        expect(page.locator("#inputs .preview audio")).to_be_visible()
        url = page.locator("#input-audio").input_value()
        with av.open(io.BytesIO(client.get(f"{url}/download").content)) as recorded:
            sound = np.concatenate([frame.to_ndarray().ravel() for frame in recorded.decode(audio=0)])
        assert np.abs(sound).max() > 0.01, "the beeps"
        page.locator("#run").click()
        expect(status(page)).to_have_text("succeeded")
