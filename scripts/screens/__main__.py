"""Screenshots of every page of the UI, of an appliance with a few predictions."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import httpx
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from scripts.benchmarks import servers
from tests.e2e import browsing
from tests.support.appliance_process import ROOT, TOKEN

#: For the README and the docs, which are read on any background: (page, scheme).
CHOSEN: Final = (("models", "light"), ("compare", "light"), ("machine", "dark"))
README: Final = ROOT / "appliance" / "assets" / "screenshots"

_SIZES: Final[dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 860}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
#: Milliseconds in which a page gets what it shows: pages are never idle, they look again and again.
SETTLING: Final = 3000
_SCHEMES: Final[tuple[Any, ...]] = ("light", "dark")
_COLOURS: Final = 128  # of a picture in the README


QUESTION: Final = "Write a Python function that adds two numbers."
#: The columns of the page Compare.
COMPARED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("appliance/smollm2-135m-instruct", {"max_tokens": 60, "seed": 1}),
    ("appliance/smollm2-135m-instruct", {"max_tokens": 60, "seed": 2, "temperature": 1.2}),
)


class Work(NamedTuple):
    """A prediction that is made before the pictures are taken."""

    model: str
    input: dict[str, Any]
    page: str  # name of the picture of its page; none if it is empty


WORK: Final = (
    Work("appliance/tiny-shapes", {"prompt": "a large red star", "seed": 3}, "prediction-picture"),
    Work(
        "appliance/smollm2-135m-instruct",
        {"prompt": "Write one sentence about the sea.", "max_tokens": 60, "seed": 1},
        "prediction-text",
    ),
    Work("appliance/echo", {"text": "hello"}, ""),
)


def main() -> int:
    """Take the screenshots and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/screenshots",
        description="Starts the appliance with the shipped models.yaml in a temporary folder, runs a few "
        "predictions, and takes a screenshot of every page.",
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".screenshots", help="folder for the screenshots")
    parser.add_argument("--url", help="URL of a running appliance to use instead of starting one")
    parser.add_argument("--token", help="admin token of that appliance")
    parser.add_argument(
        "--readme", action="store_true", help="also update the screenshots in the README and the docs"
    )
    arguments = parser.parse_args()
    if (arguments.url is None) != (arguments.token is None):
        parser.error("--url and --token must be used together")
    with ExitStack() as stack:
        if arguments.url is None:
            running = stack.enter_context(servers.appliance(shipped=True, ui=True))
            arguments.url, arguments.token = running.url, TOKEN
        pages = _pages(arguments.url, arguments.token)
        opened = stack.enter_context(browsing.started())
        pages |= _used_pages(opened, arguments.url, arguments.token)
        for scheme in _SCHEMES:
            for device in _SIZES:
                context = opened.new_context(color_scheme=scheme, base_url=arguments.url, **_SIZES[device])
                _take(context, pages, arguments.token, arguments.out / f"{device}-{scheme}")
                context.close()
    if arguments.readme:
        for page, scheme in CHOSEN:
            _shrink(arguments.out / f"desktop-{scheme}" / f"{page}.png", README / f"{page}-{scheme}.png")
    return 0


def _pages(url: str, token: str) -> dict[str, str]:
    """Picture -> path, once there is something to see."""
    pages = {
        "models": "/explore",
        "model-language": "/appliance/smollm2-135m-instruct",
        "model-image": "/appliance/tiny-shapes",
        "model-settings": "/models/appliance/smollm2-135m-instruct/settings",
        "add": "/add",
        "config": "/config",
        "predictions": "/predictions",
        "machine": "/machine",
        "usage": "/usage",
        "api": "/api",
        "audit": "/audit",
        "settings": "/settings",
    }
    headers = {"Authorization": f"Bearer {token}", "Prefer": "wait"}
    with httpx.Client(base_url=url, headers=headers, timeout=300, trust_env=False) as client:
        for work in WORK:
            reply = client.post(f"/v1/models/{work.model}/predictions", json={"input": work.input})
            if reply.is_success and work.page:
                id = reply.json()["id"]
                pages[work.page] = f"/p/{id}"
                client.put(f"/admin/models/{work.model}/examples/{id}").raise_for_status()
            print(f"{work.model}: HTTP {reply.status_code}", file=sys.stderr)
    return pages


def _used_pages(browser: Browser, url: str, token: str) -> dict[str, str]:
    """Return the pages of a conversation and of a comparison, once both have answers."""
    page = browser.new_context(base_url=url).new_page()
    browsing.sign_in(page, token)
    page.goto("/chat?model=appliance/smollm2-135m-instruct")
    message = page.get_by_label("Message", exact=True)
    message.fill(QUESTION)
    message.press("Enter")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=300_000)
    conversation = page.url
    query = [("prompt", "Tell me about the sea.")]
    for model, input in COMPARED:
        query += [("model", model), ("input", json.dumps(input)), ("run", "")]
    page.goto(f"/compare?{urlencode(query)}")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#columns .badge.succeeded")).to_have_count(len(COMPARED), timeout=300_000)
    compared = page.url
    page.context.close()
    return {"chat": conversation, "compare": compared}


def _take(context: BrowserContext, pages: dict[str, str], token: str, folder: Path) -> None:
    page = context.new_page()
    page.goto("/signin")
    page.get_by_label("API token").wait_for()
    _picture(page, folder / "sign-in.png")
    browsing.sign_in(page, token)
    for name, path in pages.items():
        page.goto(path)
        page.wait_for_timeout(SETTLING)
        _picture(page, folder / f"{name}.png")


def _picture(page: Page, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file, full_page=True, animations="disabled")
    print(file)


def _shrink(source: Path, target: Path) -> None:
    """As a PNG with few colours: pages have few."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        picture.convert("RGB").crop((0, 0, picture.width, min(picture.height, 900))).quantize(
            _COLOURS, dither=Image.Dither.NONE
        ).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
