"""The list of predictions in a real browser: filters, search, previews, and the selected ones."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.clients import run

pytestmark = pytest.mark.e2e

STREAM = "test/stream"
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(1)">'


def slow(client: httpx.Client) -> dict[str, Any]:
    reply = client.post(f"/v1/models/{STREAM}/predictions", json={"input": {"text": "x", "delay": 3000}})
    record: dict[str, Any] = reply.json()
    return record


def test_predictions_are_filtered_and_one_under_way_is_cancelled(page: Page, client: httpx.Client) -> None:
    failed = run(client, STREAM, input={"text": "x", "fail": HOSTILE})
    running = slow(client)
    page.goto(f"/predictions?model={STREAM}")
    row = page.locator("#predictions tr")
    expect(row.filter(has_text=failed["id"])).to_contain_text(HOSTILE)
    page.get_by_label("State").select_option("failed")
    expect(row.filter(has_text=running["id"])).to_have_count(0)
    expect(row.filter(has_text=failed["id"])).to_be_visible()
    page.get_by_label("Created").select_option("last hour")
    expect(row.filter(has_text=failed["id"])).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?model=test%2Fstream&status=failed&made=3600$"))
    page.reload()
    expect(page.get_by_label("State")).to_have_value("failed")
    expect(row.filter(has_text=running["id"])).to_have_count(0)
    page.get_by_label("Took").select_option("more than 10 min")
    expect(row.filter(has_text=failed["id"])).to_have_count(0)
    expect(page).to_have_url(re.compile(r"&slower=10m$"))
    page.get_by_label("Took").select_option("any")
    expect(row.filter(has_text=failed["id"])).to_be_visible()
    page.get_by_label("State").select_option("aborted")
    expect(page.get_by_text("No predictions")).to_be_visible()
    page.goto(running["urls"]["web"])
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("main .badge.canceled")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert client.get(running["urls"]["get"]).json()["status"] == "canceled"


def test_predictions_are_found_by_their_text_and_downloaded(
    page: Page, client: httpx.Client, tmp_path: Path
) -> None:
    found = run(client, STREAM, input={"text": "A Zebra and a quagga"})
    other = run(client, STREAM, input={"text": "nothing of the sort"})
    page.goto("/predictions")
    row = page.locator("#predictions tr")
    expect(row.filter(has_text=other["id"])).to_be_visible()
    page.get_by_label("Search").fill("zebra AND")
    expect(row.filter(has_text=other["id"])).to_have_count(0)
    expect(row.filter(has_text=found["id"])).to_contain_text("A Zebra and a quagga")
    expect(page).to_have_url(re.compile(r"[?&]search=zebra\+AND"))
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("zebra AND")
    for kind in ("CSV", "JSONL"):
        with page.expect_download() as loading:
            page.get_by_role("link", name=kind, exact=True).click()
        loading.value.save_as(tmp_path / kind)
    with (tmp_path / "CSV").open(newline="") as file:
        assert found["id"] in [each["id"] for each in csv.DictReader(file)]
    records = [json.loads(line) for line in (tmp_path / "JSONL").read_text().splitlines()]
    assert {"text": "A Zebra and a quagga"} in [each["input"] for each in records]
    assert other["id"] not in [each["id"] for each in records]


def test_selected_predictions_are_cancelled_run_again_and_deleted(page: Page, client: httpx.Client) -> None:
    running = [slow(client), slow(client)]
    made = run(client, STREAM, input={"text": "run me again"})
    page.goto(f"/predictions?model={STREAM}")
    row = page.locator("#predictions tr")
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    expect(cancel).to_be_disabled()
    for each in running:
        page.get_by_role("checkbox", name=f"Select {each['id']}").check()
    cancel.click()
    expect(page.get_by_text("Predictions canceled: 2.")).to_be_visible()
    for each in running:
        expect(row.filter(has_text=each["id"])).to_contain_text("canceled")
    tick = page.get_by_role("checkbox", name=f"Select {made['id']}")
    tick.check()
    run(client, STREAM, input={"text": "meanwhile"})
    expect(row.filter(has_text="meanwhile").first).to_be_visible()  # the list was refreshed
    expect(tick).to_be_checked()
    again, disabled = page.get_by_role("button", name="Run again"), list[bool]()

    def created(route: Route) -> None:
        disabled.append(again.is_disabled())
        route.continue_()

    page.route("**/_ui/api/v1/predictions", created)
    again.click()
    expect(tick).not_to_be_checked()
    expect(page.get_by_text("Predictions created: 1.")).to_be_visible()
    expect(row.filter(has_text="run me again")).to_have_count(2)
    assert disabled == [True], "a second click creates no more"
    tick.check()
    page.get_by_role("button", name="Delete data").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Predictions whose data was deleted: 1.")).to_be_visible()
    expect(row.filter(has_text=made["id"])).to_contain_text("deleted")
    assert client.get(f"/v1/predictions/{made['id']}").json()["data_removed"] is True


def test_a_call_of_another_api_is_not_run_again(page: Page, client: httpx.Client) -> None:
    made = run(client, STREAM, input={"text": "as if of a chat"})

    def of_a_chat(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "operation": "chat"})

    page.route(f"**/_ui/api/admin/predictions/{made['id']}", of_a_chat)
    page.goto(f"/predictions?model={STREAM}")
    page.get_by_role("checkbox", name=f"Select {made['id']}").check()
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_text("Calls of other APIs, such as chats, cannot be run again here.")).to_be_visible()
    expect(page.locator("#predictions tr").filter(has_text="as if of a chat")).to_have_count(1)
