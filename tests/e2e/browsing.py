"""A real browser, and what it must not find in any page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

from tests.support.appliance_process import PATIENCE

EXECUTABLE = os.environ.get("APPLIANCE_TEST_BROWSER", "/usr/bin/chromium")
#: It runs as root in CI, has no display, and calls nobody.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a microphone that beeps once a second
]
#: What Gradio's client says when it is told that an upload is complete.
UPLOADED = ("Method not implemented.",)
#: What it says of streams and requests that end because their page is left, and of nothing else then.
ENDED = ("AbortError: ", "Unexpected error Connection errored out.")
#: Tells in the console, between whose other lines it then stands, that a page is being left or is new.
LEAVING, ENTERED = "the page is being left", "the page is new"
TELLING = f"""
if (window === top) console.debug({ENTERED!r});
addEventListener("beforeunload", () => console.debug({LEAVING!r}));
"""
expect.set_options(timeout=PATIENCE * 1000)


@contextmanager
def started() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched(
    browser: Browser, url: str, *, refused: bool = False, allowed: tuple[str, ...] = (), **context: Any
) -> Iterator[Page]:
    """A page of a fresh context at ``url``.

    Afterwards it must have found no error, asked no other server for anything, and, unless that is what the
    test is about, been ``refused`` nothing. Messages that begin as one that is ``allowed`` are no error.
    """
    wrong: list[str] = []
    leaving = False

    def heard(message: ConsoleMessage) -> None:
        nonlocal leaving
        if message.text in {LEAVING, ENTERED}:
            leaving = message.text == LEAVING
            return
        if leaving and message.text.startswith(ENDED):
            return
        expected = (refused and "status of 4" in message.text) or message.text.startswith(
            (*allowed, *UPLOADED)
        )
        if message.type in {"error", "warning"} and not expected:
            wrong.append(f"console: {message.text} ({message.location.get('url')})")

    def asked(request: Request) -> None:
        if not request.url.startswith((f"{url}/", "data:", "blob:")):
            wrong.append(f"elsewhere: {request.url}")

    def answered(response: Response) -> None:
        if response.status >= 400 and not refused:
            wrong.append(f"{response.status}: {response.url}")

    opened = browser.new_context(base_url=f"{url}/", **context)
    opened.set_default_timeout(PATIENCE * 1000)
    opened.add_init_script(TELLING)
    page = opened.new_page()
    page.on("console", heard)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("request", asked)
    page.on("response", answered)
    yield page
    page.close()
    opened.close()
    assert not wrong, "\n".join(wrong)


def sign_in(page: Page, secret: str) -> None:
    """Sign in with the form, as people do."""
    page.goto("./")  # ``url`` may have a path
    page.get_by_label("API token").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/explore")


def sign_out(page: Page) -> None:
    page.locator(".menu > summary").click()
    page.get_by_role("button", name="Sign out").click()


def fill(page: Page, name: str, value: str) -> None:
    """Fill in an input on the page of a model, folded or not."""
    control = page.locator(f"#input-{name}")
    if not control.is_visible():
        page.get_by_text("more inputs").click()
    control.fill(value)


def status(page: Page) -> Locator:
    """The state of the run on the page of a model."""
    return page.locator(".run-status .badge")
