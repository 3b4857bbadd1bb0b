"""Waits of a minute and more, through the real clients; they go on beside the other tests."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from typing import Any

from appliance.gateway.api import ui_proxy
from tests.e2e.clients import beta, client_of
from tests.support.appliance_process import Appliance, fetch, wait_for

LONGER = 64  # seconds; more than any client waits for an answer
SILENT = 34  # seconds; more than Python 1.0 waits for a byte


def answered(appliance: Appliance) -> tuple[float, dict[str, Any]]:
    """How long the longest wait takes to be answered, and with what."""
    body = {"version": "appliance/echo", "input": {"text": "wait-http", "delay": LONGER}}
    with appliance.client() as client:
        began = time.monotonic()
        reply = client.post("/v1/predictions", json=body, headers={"Prefer": "wait=300"})
        return time.monotonic() - began, {**reply.json(), "applied": reply.headers["preference-applied"]}


def python(appliance: Appliance) -> Any:
    """Python 1.0 waits as long as it can, then polls."""
    with client_of(appliance.url) as client:
        return client.run("appliance/echo", input={"text": "wait-py1", "delay": LONGER}, wait=60)


def python2(appliance: Appliance) -> Any:
    """The same with the 2.0 beta."""
    script = (
        f'asked = {{"text": "wait-py2", "delay": {LONGER}}}\n'
        'print(json.dumps("".join(map(str, replicate.run("appliance/echo", input=asked, wait=60)))))'
    )
    return beta(appliance, script)


def stream(appliance: Appliance) -> list[str]:
    """Python 1.0 reads a stream that says nothing for long."""
    with client_of(appliance.url) as client:
        asked = {"text": "at last", "delay": SILENT}
        return [str(event) for event in client.stream("test/stream", input=asked)]


def kept(appliance: Appliance) -> int:
    """The status of a request to the UI on a connection that was idle longer than the gateway keeps one."""
    wait_for(lambda: fetch(appliance.url).status_code != 503, "the pages")
    connection = http.client.HTTPConnection("ui")
    connection.auto_open = 0
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.connect(str(appliance.home / "run" / "ui.sock"))
        for pause in (3 * ui_proxy.IDLE, 0):
            connection.request("GET", "/signin")
            answer = connection.getresponse()
            answer.read()
            time.sleep(pause)
    return answer.status


ALL: dict[str, Callable[[Appliance], Any]] = {
    "answered": answered,
    "python": python,
    "python2": python2,
    "stream": stream,
    "kept": kept,
}
