"""The usage page in a real browser: its choices, charts and CSV, without a message in the console."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.clients import run

pytestmark = pytest.mark.e2e

STREAM = "test/stream"


def test_the_csv_of_usage_is_the_one_of_the_api(page: Page, client: httpx.Client, tmp_path: Path) -> None:
    run(client, STREAM, input={"text": "x"})
    page.goto("/usage")
    expect(page.locator("#totals b").first).not_to_have_text("0")
    expect(page.locator("#usage tr").filter(has_text=STREAM)).to_be_visible()
    with page.expect_download() as loading:
        page.locator("#download").click()
    loading.value.save_as(tmp_path / "usage.csv")
    lines = (tmp_path / "usage.csv").read_text().splitlines()
    shown = client.get("/admin/usage.csv", params={"by": "model"}).text.splitlines()
    assert lines[0] == shown[0]
    assert {line.split(",")[0] for line in lines} == {line.split(",")[0] for line in shown}
    assert loading.value.suggested_filename.startswith("usage-")


def test_choices_change_the_charts_and_the_table_and_stay_in_the_address(
    page: Page, client: httpx.Client
) -> None:
    run(client, STREAM, input={"text": "x"})
    page.goto("/usage")
    expect(page.get_by_role("img", name=re.compile("^Run time by day"))).to_be_visible()
    page.get_by_label("Charts show").select_option("Predictions")
    expect(page.get_by_role("img", name=re.compile("^Predictions by model"))).to_be_visible()
    page.get_by_label("Period").select_option("7 days")
    page.get_by_label("Hardware").check()
    heads = page.locator("#usage thead")
    expect(heads).to_contain_text("Hardware")
    expect(page).to_have_url(re.compile(r"\?days=7&by=model&by=hardware&amount=predictions$"))
    page.reload()
    expect(page.get_by_label("Hardware")).to_be_checked()
    expect(heads).to_contain_text("Hardware")
    expect(page.get_by_role("img", name=re.compile("^Predictions by day"))).to_be_visible()
