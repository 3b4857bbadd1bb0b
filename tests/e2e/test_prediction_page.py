"""The page of a prediction in a real browser: outputs of several shapes, and what one does there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.e2e


def run(client: httpx.Client, model: str, **given: Any) -> dict[str, Any]:
    reply = client.post(
        f"/v1/models/{model}/predictions", json={"input": given}, headers={"Prefer": "wait=60"}
    )
    record: dict[str, Any] = reply.json()
    assert record["status"] == "succeeded", record
    return record


def test_a_transcript_is_heard_and_saved_as_subtitles(
    page: Page, client: httpx.Client, tmp_path: Path
) -> None:
    spoken = run(client, "appliance/piper-joe", text="The first words are here.")
    audio = client.get(spoken["output"]).content
    upload = client.post("/v1/files", files={"content": ("said.wav", audio, "audio/wav")}).json()
    record = run(client, "appliance/whisper-tiny-en", audio=upload["urls"]["get"])
    page.goto(record["urls"]["web"])
    expect(page.locator(".said-text")).to_contain_text("first words")
    expect(page.locator(".waveform").first).to_be_visible()
    player = page.locator(".transcript audio")
    expect(player).to_be_visible()
    time = page.locator(".transcript button.time").first
    expect(time).to_have_text("0:00.0")
    time.click()
    expect(player).to_have_js_property("paused", False)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download SRT").click()
    download.value.save_as(tmp_path / "said.srt")
    lines = (tmp_path / "said.srt").read_text().splitlines()
    assert lines[0] == "1"
    assert re.fullmatch(r"00:00:0\d,\d{3} --> 00:00:0\d,\d{3}", lines[1])
    assert "first words" in lines[2]


def test_vectors_are_compared_and_json_is_one_click_away(page: Page, client: httpx.Client) -> None:
    record = run(client, "appliance/all-minilm-l6-v2", texts='["a cat", "a kitten", "the price of steel"]')
    page.goto(record["urls"]["web"])
    first = page.locator(".similarity tbody tr").first.locator("td").all_inner_texts()
    assert first[0] == "1.00"
    assert float(first[1]) > float(first[2])
    expect(page.locator(".raw pre")).to_be_hidden()
    page.get_by_text("JSON", exact=True).click()
    expect(page.locator(".raw pre")).to_be_visible()


def test_images_open_large_and_a_prediction_runs_again(page: Page, client: httpx.Client) -> None:
    record = run(client, "appliance/tiny-shapes", prompt="a red circle", num_outputs=2, seed=1)
    page.goto(record["urls"]["web"])
    page.locator(".made img").first.click()
    large = page.locator("dialog.lightbox img")
    expect(large).to_be_visible()
    before = large.get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(large).not_to_have_attribute("src", before or "")
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()
    page.get_by_role("button", name="Run again", exact=True).click()
    page.wait_for_url(lambda url: "/p/" in url and record["id"] not in url)
    expect(page.locator("#prediction .badge")).to_have_text("succeeded")
    expect(page.locator(".made img")).to_have_count(2)
