"""The machine page in a real browser: buttons, progress, decisions, logs, disk, and what a refresh keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browsing import watched
from tests.e2e.clients import run
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e

MODEL = "test/files"


@pytest.fixture
def machine(browser: Browser, appliance: Appliance, signed_in: Any) -> Iterator[Page]:
    with watched(browser, appliance.url, storage_state=signed_in) as page:
        page.goto("/machine")
        yield page


def state(client: httpx.Client) -> dict[str, Any]:
    models = client.get("/admin/status").json()["models"]
    found: dict[str, Any] = next(each for each in models if each["name"] == MODEL)
    return found


def test_a_model_is_loaded_unloaded_and_pinned_in_its_row(machine: Page, client: httpx.Client) -> None:
    client.post(f"/admin/models/{MODEL}/unload")
    row = machine.locator("#models tr").filter(has_text=MODEL)
    fold = machine.locator("#fold-idle")
    expect(fold.locator("tr").filter(has_text=MODEL)).to_have_count(1)
    fold.locator("> summary").click()
    row.get_by_role("button", name=f"Load {MODEL}").click()
    expect(row.locator(".badge.ready")).to_be_visible()
    expect(machine.get_by_role("status").filter(has_text=f"{MODEL} is loaded.")).to_be_visible()
    # With more than six models it may be in the folded rest of the legend.
    expect(machine.locator("#devices .legend").filter(has_text=MODEL).first).to_be_attached()
    row.get_by_role("button", name=f"Pin {MODEL}").click()
    expect(row).to_contain_text("pinned")
    assert state(client)["pinned"] is True
    row.get_by_role("button", name=f"Unpin {MODEL}").click()
    expect(row).not_to_contain_text("pinned")
    row.get_by_role("button", name=f"Unload {MODEL}").click()
    expect(row.locator(".badge.cold")).to_have_text("not loaded")
    assert state(client)["state"] == "cold"
    machine.locator("#fold-decisions > summary").click()
    expect(machine.locator("#decisions summary").filter(has_text=f"loaded {MODEL} in ").first).to_be_visible()
    machine.get_by_role("button", name="Apply models.yaml").click()
    expect(machine.get_by_text("nothing has changed")).to_be_visible()


def test_a_refresh_keeps_folds_and_selected_text(machine: Page, client: httpx.Client) -> None:
    client.post(f"/admin/models/{MODEL}/load")
    machine.locator("#fold-decisions > summary").click()
    first = machine.locator("#decisions details").first
    first.locator("summary").click()
    name = first.get_attribute("id")
    client.post(f"/admin/models/{MODEL}/unload")
    assert name is not None
    expect(machine.locator("#decisions details").first).not_to_have_attribute("id", name)
    expect(machine.locator(f"#{name}")).to_have_attribute("open", "")
    machine.locator("#devices h3").first.select_text()
    chosen = machine.evaluate("getSelection().toString()")
    assert chosen
    with machine.expect_response(lambda reply: reply.url.endswith("/machine/devices")):
        client.post(f"/admin/models/{MODEL}/load")
    with machine.expect_response(lambda reply: reply.url.endswith("/machine/devices")):
        pass
    assert machine.evaluate("getSelection().toString()") == chosen


def test_what_has_not_changed_is_not_sent(machine: Page) -> None:
    with machine.expect_response(
        lambda reply: reply.url.endswith("/machine/disk") or reply.status == 204
    ) as loading:
        pass
    assert loading.value.status == 204


def test_the_charts_show_the_last_hour(machine: Page, client: httpx.Client) -> None:
    run(client, MODEL, input={"text": "x"})
    memory = machine.get_by_role("img", name="Memory of cpu: now")
    expect(memory.locator("path.area").first).to_be_attached()
    expect(machine.get_by_role("img", name="Main memory: now")).to_be_visible()
    table = machine.locator("#chart-loads")
    table.locator("summary").click()
    expect(table.locator("td").filter(has_text=MODEL).first).to_be_visible()
    overlaps = machine.evaluate(
        """() => [...document.querySelectorAll(".chart svg")].flatMap(svg => {
          const boxes = [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect());
          return boxes.flatMap((a, at) => boxes.slice(at + 1).filter(b =>
            a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom));
        }).length"""
    )
    assert overlaps == 0


def test_the_log_of_a_model_is_shown_live(machine: Page, client: httpx.Client, appliance: Appliance) -> None:
    client.post(f"/admin/models/{MODEL}/load")
    machine.locator("#fold-logs > summary").click()
    machine.locator("#log-model").select_option(MODEL)
    log = machine.get_by_role("log")
    file = next(appliance.home.rglob("test--files.log"))
    with file.open("a") as opened:
        opened.write("a line with <b>markup</b> of https://x.example/?token=private\n")
    expect(log).to_contain_text("a line with <b>markup</b> of https://x.example/?***")
    with file.open("a") as opened:
        opened.write("one more line\n")
    expect(log).to_contain_text("one more line")
    machine.locator("#fold-logs > summary").click()


def test_the_log_goes_on_after_its_stream_was_refused(
    browser: Browser, appliance: Appliance, client: httpx.Client, signed_in: Any
) -> None:
    client.post(f"/admin/models/{MODEL}/load")
    said = ("Failed to load resource: the server responded with a status of 503",)
    with watched(browser, appliance.url, storage_state=signed_in, refused=True, allowed=said) as page:
        page.goto("/machine")
        page.locator("#fold-logs > summary").click()
        page.route(f"**/{MODEL}/logs/events", lambda route: route.fulfill(status=503), times=1)
        with page.expect_response(lambda reply: "/_ui/beat" in reply.url):
            page.locator("#log-model").select_option(MODEL)
        expect(page.get_by_role("log")).not_to_be_empty()
        expect(page.get_by_text("Your session has ended")).to_be_hidden()


def test_unused_weights_are_deleted_after_a_question(machine: Page, appliance: Appliance) -> None:
    weights = next(appliance.home.rglob("weights")) / "hub" / "nobody--nothing"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(bytes(2**20))
    machine.locator("#fold-unused > summary").click()
    row = machine.locator("#unused tr").filter(has_text="nobody--nothing")
    expect(row).to_contain_text("1.0 MiB")
    row.get_by_role("checkbox").check()
    machine.get_by_role("button", name="Delete the chosen weights").click()
    question = machine.get_by_role("dialog")
    expect(question).to_contain_text("1.0 MiB")
    question.get_by_role("button", name="Keep them").click()
    assert weights.exists()
    machine.get_by_role("button", name="Delete the chosen weights").click()
    question.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    assert not weights.exists()


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_the_page_fits_and_does_not_move(
    browser: Browser, appliance: Appliance, signed_in: Any, width: int
) -> None:
    size = {"width": width, "height": 844}
    with watched(browser, appliance.url, viewport=size, storage_state=signed_in) as page:
        page.add_init_script(
            """window.moved = 0;
            new PerformanceObserver(list => list.getEntries().forEach(entry => {
              if (!entry.hadRecentInput) window.moved += entry.value;
            })).observe({type: "layout-shift", buffered: true});"""
        )
        page.goto("/machine")
        expect(page.locator("#models td").first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.moved") <= 0.02
        if width == 390:
            heights = page.locator("main > *").evaluate_all(
                "all => all.map(each => [each.id || each.tagName, each.offsetHeight])"
            )
            assert page.evaluate("document.documentElement.scrollHeight") <= 4000, heights
