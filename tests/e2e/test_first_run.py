"""From the first sign-in to the first output, on an appliance with an empty data folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browsing import watched
from tests.support.appliance_process import TOKEN, Appliance, fetch, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Appliance]:
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  - {name: test/echo, kind: echo, memory: 64MiB, options: {stream: true}}\n")
    appliance = Appliance(tmp_path / "home", config, ui=True)
    appliance.start()
    yield appliance
    appliance.stop()


def test_three_clicks_lead_to_the_first_output(browser: Browser, fresh: Appliance) -> None:
    wait_for(lambda: fetch(fresh.url).status_code != 503, "the pages")
    with watched(browser, fresh.url) as page:
        page.goto("./")
        page.get_by_label("API token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()  # 1
        page.get_by_role("button", name="Run").click()  # 2
        expect(page.locator("#first-output pre")).to_have_text("Hello!")
        lines = page.locator("#program-python")
        expect(lines).to_contain_text(f"REPLICATE_BASE_URL={fresh.url} REPLICATE_API_TOKEN=<your token>")
        page.get_by_role("button", name="Create a token").click()
        expect(page.locator("#first-secret-text")).to_have_text(re.compile("^apl_"))
        secret = page.locator("#first-secret-text").text_content() or ""
        expect(lines).to_contain_text(f"REPLICATE_API_TOKEN={secret}")
        page.get_by_role("tab", name="curl").click()
        expect(page.locator("#program-curl")).to_contain_text(secret)
        made = {"Authorization": f"Bearer {secret}"}
        assert fetch(f"{fresh.url}/v1/account", headers=made).status_code == 200
        page.reload()  # there are predictions now
        expect(page.locator("#cards .card")).to_be_visible()
        expect(page.get_by_text("Start here")).to_have_count(0)
