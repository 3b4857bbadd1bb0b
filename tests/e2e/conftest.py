"""One appliance for the whole run: the shipped models.yaml and a few echo models, started by its command."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Browser, Page
from replicate.client import Client

from tests.e2e import model_groups
from tests.e2e.browsing import sign_in, started, watched
from tests.e2e.clients import LANGUAGE_MODEL, client_of
from tests.e2e.contract import Contract
from tests.e2e.rows import APART, LEFT_OUT, ROWS, named
from tests.support.appliance_process import (
    PATIENCE,
    ROOT,
    TOKEN,
    Appliance,
    fetch,
    http_client,
    link_weights,
    wait_for,
)
from tests.support.cluster import CLUSTER_TOKEN
from tests.support.http_node import HttpNode
from tests.support.network_namespaces import Network
from tests.support.trace_collector import Collector
from tests.support.webhook_receiver import Receiver, receiving

__all__ = ["LANGUAGE_MODEL"]

COMMAND = str(ROOT / ".venv" / "bin" / "appliance")
ECHO_MODELS: list[dict[str, Any]] = [
    {"name": "test/stream", "kind": "echo", "memory": "64MiB", "options": {"stream": True}},
    {"name": "test/one-at-a-time", "kind": "echo", "memory": "64MiB", "options": {"concurrency": 1}},
    {"name": "test/files", "kind": "echo", "memory": "64MiB", "options": {"files": True}},
    {
        "name": "test/file-stream",
        "kind": "echo",
        "memory": "64MiB",
        "options": {"files": True, "stream": True},
    },
    {"name": "test/scaled", "kind": "echo", "memory": "64MiB", "options": {"concurrency": 1}},
    {"name": "test/whole-machine", "kind": "echo", "gpu": 1},
    {"name": "test/too-big", "kind": "echo", "memory": "100TiB"},
]


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """What the appliance sends its traces to."""
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="session")
def appliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[Appliance]:
    home = tmp_path_factory.mktemp("home")
    link_weights(home)
    shipped = yaml.safe_load((ROOT / "models.yaml").read_text())
    (language_model,) = (model for model in shipped["models"] if model["name"] == LANGUAGE_MODEL)
    language_model["options"]["max_tokens"] = 128  # the poem of the README would take a minute of CPU
    (home / "readme.md").write_text("# Streams\n\nWord by word.\n")
    shipped["models"] += ECHO_MODELS
    shipped["models"][-len(ECHO_MODELS)]["readme"] = str(home / "readme.md")
    for group in sorted(model_groups.needed(request.session.items)):
        shipped["models"] += model_groups.prepare(group, home)
    shipped["code"] = {"cog": True}
    shipped["egress"] = {"allow": ["127.0.0.0/8"]}
    shipped["telemetry"] = {"otlp_endpoint": collector.url}
    shipped["limits"] = {
        "requests_per_minute": 1800, "predictions_per_minute": 300, "cancel_grace": "3s",
    }  # fmt: skip
    shipped["collections"] = [
        {"slug": "talkers", "name": "Talkers", "description": "All that talk", "models": [LANGUAGE_MODEL]}
    ]
    config = home / "models.yaml"
    running = Appliance(home, config, ui=True)
    with through_node(tmp_path_factory, shipped, running) as node:
        config.write_text(yaml.safe_dump(shipped))
        running.start(seconds=600)  # the first run on a machine fetches and converts the weights
        if node is not None:
            node.start()
            wait_for(node.answers, "the node to answer")
            running.url = node.url
        yield running
    running.stop()
    assert running.processes() == []


@contextlib.contextmanager
def through_node(
    folders: pytest.TempPathFactory, config: dict[str, Any], head: Appliance
) -> Iterator[HttpNode | None]:
    """With the variable ``APPLIANCE_TEST_NODE``, make a machine that forwards all requests to ``head``.

    ``config`` is the content of models.yaml of the head, before it starts. Without the variable: None.
    """
    if not os.environ.get("APPLIANCE_TEST_NODE"):
        yield None
        return
    network = Network(["node"])
    config["cluster"] = {"address": network.own_address, "name": "head"}
    config["egress"]["allow"] += [f"{network.addresses['node']}/32"]  # models fetch files from the node
    head.variables = {"APPLIANCE_CLUSTER_TOKEN": CLUSTER_TOKEN}
    node = HttpNode(folders.mktemp("node"), network, "node", network.own_address)
    try:
        yield node
        node.stop()
    finally:
        if node.process is not None:
            node.kill()
        network.close()


@pytest.fixture(scope="session")
def browser(appliance: Appliance) -> Iterator[Browser]:
    """One browser for the whole run, begun when there are pages."""
    wait_for(lambda: fetch(appliance.url).status_code != 503, "the pages")
    with started() as browser:
        yield browser


@pytest.fixture(scope="session")
def signed_in(browser: Browser, appliance: Appliance) -> Any:
    """What a browser keeps of an administrator who has signed in."""
    with watched(browser, appliance.url) as page:
        sign_in(page, TOKEN)
        return page.context.storage_state()


@pytest.fixture
def page(browser: Browser, appliance: Appliance, signed_in: Any) -> Iterator[Page]:
    """An empty page of a signed-in browser; what it does not like fails the test."""
    with watched(browser, appliance.url, storage_state=signed_in) as page:
        yield page


@pytest.fixture
def phone(browser: Browser, appliance: Appliance, signed_in: Any) -> Iterator[Page]:
    """The same as wide as a phone."""
    size = {"width": 390, "height": 844}
    with watched(browser, appliance.url, viewport=size, storage_state=signed_in) as page:
        yield page


@pytest.fixture
def client(appliance: Appliance) -> Iterator[httpx.Client]:
    with appliance.client() as signed_in:
        yield signed_in


@pytest.fixture
def stranger(appliance: Appliance) -> Iterator[httpx.Client]:
    """A client without a token."""
    with http_client(appliance.url) as client:
        yield client


@pytest.fixture(scope="session")
def contract(appliance: Appliance) -> Contract:
    return Contract(fetch(f"{appliance.url}/openapi.json").json())


@pytest.fixture
def api(appliance: Appliance, contract: Contract) -> Iterator[httpx.Client]:
    """A signed-in client whose every answer is held against the documents."""
    with appliance.client() as signed_in:
        signed_in.event_hooks["response"].append(contract.check)
        yield signed_in


@pytest.fixture
def official(appliance: Appliance) -> Iterator[Client]:
    with client_of(appliance.url) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture(scope="session")
def new_token(appliance: Appliance) -> Callable[..., str]:
    """A function that creates a token and returns its secret. Keywords are fields of POST /admin/tokens."""

    def make(name: str, **more: str) -> str:
        with appliance.client() as admin:
            reply = admin.post("/admin/tokens", json={"name": name, **more})
        return str(reply.raise_for_status().json()["token"])

    return make


def command(appliance: Appliance, *arguments: str) -> str:
    """What a command prints."""
    ran = subprocess.run(
        [COMMAND, *arguments],
        cwd=appliance.home,
        env={**appliance.environment, "APPLIANCE_PORT": str(appliance.port)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


class Background:
    """Something that takes a minute, begun before the other tests and looked at after them."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


@pytest.fixture(scope="session", autouse=True)
def slow(request: pytest.FixtureRequest) -> dict[str, Background]:
    """What tests marked ``last`` look at. Without such tests nothing is started, not even the appliance."""
    from tests.e2e import waits

    if not any(item.get_closest_marker("last") for item in request.session.items):
        return {}
    appliance = request.getfixturevalue("appliance")
    return {name: Background(partial(work, appliance)) for name, work in waits.ALL.items()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the names of model groups, and run tests marked ``last`` at the end."""
    model_groups.needed(items)  # fails if a test names a group that does not exist
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say which marker a failed test lacks."""
    report = yield
    if report.failed and "appliance" in getattr(item, "fixturenames", ()):
        for hint in model_groups.missing_markers(item.session.items, report.longreprtext):
            report.sections.append(("models that the appliance of this run does not serve", hint))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many rows of the checklist were held."""
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    held = {row for id in passed for row in named(id.rpartition("::")[2])}
    if len(held) > 10:  # not when a single file was run
        terminalreporter.section("conformance")
        terminalreporter.write_line(f"{len(held)} of {len(ROWS)} rows of the contract held by a passed test")
        for row, reason in LEFT_OUT.items():
            terminalreporter.write_line(f"left out: {row}: {reason}")
        apart = {row: file for row, file in APART.items() if row not in held}
        for row, file in apart.items():
            terminalreporter.write_line(f"not run here: {row}: its test is in {file}")
        missing = [row for row in ROWS if row not in held and row not in LEFT_OUT and row not in apart]
        if missing:
            terminalreporter.write_line(f"not held: {', '.join(missing)}")


def example_file(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    file = folder / "data.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file
