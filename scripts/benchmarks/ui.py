"""The UI: time to the first paint, time from a click to the first token, and cost of open sessions."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from typing import Any, Final, NamedTuple

import httpx
from playwright.sync_api import Browser, Page, Request
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import load, servers
from tests.e2e import browsing
from tests.e2e.clients import LANGUAGE_MODEL
from tests.support.appliance_process import PATIENCE, TOKEN, Appliance, wait_for

ROUNDS: Final = 3
SESSIONS: Final = 20
#: What the open sessions look at; all of these look again and again by themselves.
LOOKING: Final = ("/explore", "/predictions", "/machine", f"/{LANGUAGE_MODEL}")
CLIENTS: Final = 16
SECONDS: Final = 5.0
RECORDED: Final = 12.0  # seconds in which a page is watched

_HEADERS: Final = {"Authorization": f"Bearer {TOKEN}"}
_PROMPT: Final = {"prompt": "Tell me a story.", "max_tokens": 24, "seed": 1}
_PAINTED: Final = """() => new Promise(seen => {
    const found = performance.getEntriesByName('first-contentful-paint')[0];
    if (found) { seen(found.startTime); return; }
    new PerformanceObserver((list, observer) => {
        for (const entry of list.getEntriesByName('first-contentful-paint')) {
            observer.disconnect(); seen(entry.startTime);
        }
    }).observe({ type: 'paint', buffered: true });
})"""
#: Milliseconds from the click on Run until the output has words. The page writes words just before a frame is
#: painted, so looking once per frame could see them one frame late.
_FIRST_WORDS: Final = """() => new Promise(seen => {
    const output = document.querySelector('#output');
    output.textContent = '';
    const clicked = performance.now();
    new MutationObserver((changes, observer) => {
        if (!output.textContent.trim()) return;
        observer.disconnect();
        seen(performance.now() - clicked);
    }).observe(output, { childList: true, characterData: true, subtree: true });
    document.querySelector('#run').click();
})"""


class Asked(NamedTuple):
    """A request that a page has made by itself."""

    at: float  # seconds after the page was opened
    url: str


def measure(console: Console) -> dict[str, Any]:
    """All three, on the shipped models."""
    with ExitStack() as stack:
        running = stack.enter_context(servers.appliance(shipped=True, ui=True))
        pages_answer = lambda: httpx.get(running.url, trust_env=False).status_code != 503  # noqa: E731
        wait_for(pages_answer, "the pages")
        _first_words(running)  # loads the model
        browser = stack.enter_context(browsing.started())
        state = _signed_in(browser, running)
        paint = _paints(browser, running, state)
        console.print(f"first paint: {paint}", style="dim")
        token = _tokens(browser, running, state)
        console.print(f"first token: {token}", style="dim")
        rate = _rates(browser, running, state, console)
    return _told({"first_paint": paint, "first_token": token, "predictions": rate}, console)


def _signed_in(browser: Browser, running: Appliance) -> Any:
    context = browser.new_context(base_url=running.url)
    browsing.sign_in(context.new_page(), TOKEN)
    state = context.storage_state()
    context.close()
    return state


def _opened(browser: Browser, running: Appliance, state: Any, path: str) -> Page:
    """A page of a browser that has seen nothing of the appliance before."""
    page = browser.new_context(base_url=running.url, storage_state=state).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(path)
    return page


def _paints(browser: Browser, running: Appliance, state: Any) -> dict[str, float]:
    """Milliseconds to the first content: of a page new to the browser, of one seen before, of Swagger UI."""
    times: dict[str, list[float]] = {"new": [], "again": [], "swagger": []}
    for _ in range(ROUNDS):
        page = _opened(browser, running, state, "/explore")
        times["new"].append(page.evaluate(_PAINTED))
        page.goto("/explore")
        times["again"].append(page.evaluate(_PAINTED))
        page.context.close()
        page = _opened(browser, running, state, "/docs")
        times["swagger"].append(page.evaluate(_PAINTED))
        page.context.close()
    return {name: statistics.median(values) for name, values in times.items()}


def _tokens(browser: Browser, running: Appliance, state: Any) -> dict[str, float]:
    """Milliseconds to the first token of the loaded model: of a click, and of a client of the API."""
    clicks, calls = [], []
    page = _opened(browser, running, state, f"/{LANGUAGE_MODEL}")
    page.get_by_label("prompt", exact=False).first.fill(str(_PROMPT["prompt"]))
    for _ in range(ROUNDS):
        clicks.append(page.evaluate(_FIRST_WORDS))
        page.locator("#cancel").click()  # the form's own limit on words is a long one
        page.wait_for_selector("#cancel:disabled")
        calls.append(_first_words(running))
    page.context.close()
    return {"click": statistics.median(clicks), "api": statistics.median(calls)}


def _first_words(running: Appliance) -> float:
    with httpx.Client(base_url=running.url, headers=_HEADERS, timeout=300, trust_env=False) as client:
        began = time.perf_counter()
        made = client.post(f"/v1/models/{LANGUAGE_MODEL}/predictions", json={"input": _PROMPT}).json()
        took = 0.0
        with client.stream("GET", made["urls"]["stream"]) as events:
            for line in servers.lines(events):
                if line == "event: output" and not took:
                    took = 1000 * (time.perf_counter() - began)
    return took


def _rates(browser: Browser, running: Appliance, state: Any, console: Console) -> dict[str, float]:
    """Sync predictions/s of the echo model: without open sessions, with them, and without again.

    The sessions ask as a browser was seen to, but draw nothing: twenty people have twenty machines for that.
    """
    url = f"{running.url}/v1/models/appliance/echo/predictions"
    body = json.dumps({"input": {"text": "hello"}})
    plan = load.Plan(url, body, {**_HEADERS, "Prefer": "wait"}, CLIENTS, SECONDS)
    seen = [_recorded(browser, running, state, path) for path in LOOKING]
    cookies = {each["name"]: each["value"] for each in state["cookies"]}
    over = Event()
    before = load.measure(plan).rate
    with ThreadPoolExecutor(SESSIONS) as sessions:
        open_ = [
            sessions.submit(_look, running.url, cookies, seen[number % len(seen)], over)
            for number in range(SESSIONS)
        ]
        try:
            time.sleep(SECONDS)
            during = [load.measure(plan).rate for _ in range(2)]
        finally:
            over.set()
        asked = sum(each.result() for each in open_)
    after = load.measure(plan).rate
    console.print(
        f"predictions/s before {before:.0f}, during {during}, after {after:.0f}; sessions: {asked} answers",
        style="dim",
    )
    return {"none": (before + after) / 2, "open": statistics.mean(during)}


def _recorded(browser: Browser, running: Appliance, state: Any, path: str) -> list[Asked]:
    """What a page asks for by itself in its first seconds."""
    page = browser.new_context(base_url=running.url, storage_state=state).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    began = time.monotonic()
    asked: list[Asked] = []

    def note(request: Request) -> None:
        if request.method == "GET" and request.resource_type in {"xhr", "fetch"}:
            asked.append(Asked(time.monotonic() - began, request.url))

    page.on("request", note)
    page.goto(path)
    page.wait_for_timeout(1000 * RECORDED)
    page.context.close()
    return asked


def _look(url: str, cookies: dict[str, str], seen: list[Asked], over: Event) -> int:
    """Ask again and again as a page was seen to; returns how often it was answered."""
    asked = 0
    with httpx.Client(base_url=url, cookies=cookies, trust_env=False, timeout=120) as client:
        while not over.is_set():
            began = time.monotonic()
            for request in seen:
                over.wait(max(0.0, began + request.at - time.monotonic()))
                asked += client.get(request.url).is_success
            over.wait(max(0.0, began + RECORDED - time.monotonic()))
    return asked


def _told(report: dict[str, Any], console: Console) -> dict[str, Any]:
    paint, token, rate = report["first_paint"], report["first_token"], report["predictions"]
    ratios = {
        "first paint, new to the browser / Swagger UI's": paint["new"] / paint["swagger"],
        "first paint, seen before / new to the browser": paint["again"] / paint["new"],
        "click to first token / the API's first token": token["click"] / token["api"],
        f"predictions/s with {SESSIONS} open sessions / with none": rate["open"] / rate["none"],
    }
    table = Table("what", "ratio", title="the pages")
    for name, ratio in ratios.items():
        table.add_row(name, f"{ratio:.2f}")
    console.print(table)
    return {**report, "ratios": ratios}
