"""Cases with large volumes: receivers that hang, large outputs, long logs, many predictions."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import httpx

from scripts.faults.ledger import Tally
from scripts.faults.testbed import Caller, Testbed
from tests.support.appliance_process import wait_for

_MIB: Final = 1024**2
_HANGING: Final = 40
_THREADS: Final = 8


def hanging_receivers(testbed: Testbed, tally: Tally, *, short: bool) -> float | None:
    """Forty receivers accept a webhook and never answer; another receiver must still get its webhooks."""
    with _hanging() as url, testbed.client() as client:
        for number in range(_HANGING // (4 if short else 1)):
            body = {"version": "test/echo", "input": {"text": f"{number}"}, "webhook": url}
            reply = client.post("/v1/predictions", json=body)
            reply.raise_for_status()
            testbed.ledger.accept(reply.json()["id"], output=f"{number}", told=False)
        since = time.monotonic()
        ids = [testbed.create(client, "test/echo", f"told {n}", text=f"told {n}") for n in range(5)]
        told = lambda: all(testbed.receiver.about(str(id)) for id in ids)  # noqa: E731 - waited for below
        with contextlib.suppress(AssertionError):
            wait_for(told, "webhooks to the receiver that answers", testbed.patience)
        seconds = round(time.monotonic() - since, 1)
    testbed.check(tally, well=True)
    return seconds


def large_outputs(testbed: Testbed, tally: Tally, *, short: bool) -> float | None:
    """Three predictions have outputs of 50 MB; a receiver gets the webhook of one."""
    piece, repeat = "0123456789" * 100, 5_000 if short else 50_000
    with Caller(testbed), testbed.client(timeout=testbed.patience) as client:
        for told in (True, False, False):
            testbed.create(client, "test/echo", piece * repeat, told=told, text=piece, repeat=repeat)
        since = time.monotonic()
        ended = testbed.recovered(since)
    testbed.check(tally, well=ended is not None)
    return ended


def long_logs(testbed: Testbed, tally: Tally, *, short: bool) -> float | None:
    """Two predictions print 100,000 lines each."""
    lines = 10_000 if short else 100_000
    printed = "\n".join(f"line {number}" for number in range(lines))
    with Caller(testbed), testbed.client(timeout=testbed.patience) as client:
        for number in range(2):
            id = testbed.create(client, "test/echo", f"log {number}", text=f"log {number}", print=printed)
            if id is not None:
                testbed.ledger.accept(id, output=f"log {number}", told=True, lines=lines)
        ended = testbed.recovered(time.monotonic())
    testbed.check(tally, well=ended is not None)
    return ended


def many_predictions(testbed: Testbed, tally: Tally, *, short: bool) -> float | None:
    """20,000 predictions over eight connections, one at a time on each; notes the gateway's memory."""
    count = 400 if short else 20_000
    _predict(testbed, _THREADS * 25, tally)  # warm-up, before memory is measured
    before = testbed.appliance.gateway().memory_info().rss
    _predict(testbed, count, tally)
    after = testbed.appliance.gateway().memory_info().rss
    tally.note(
        f"the gateway holds {before / _MIB:.0f} MiB before and {after / _MIB:.0f} MiB after {count:,} "
        f"predictions ({after / before:.2f} times as much)"
    )
    seconds = testbed.recovered(time.monotonic())
    testbed.check(tally, well=seconds is not None)
    return seconds


def _predict(testbed: Testbed, count: int, tally: Tally) -> None:
    """Make ``count`` predictions and wait for each; enter those that have not ended in the ledger."""

    def some(first: int) -> tuple[int, int]:
        made = right = 0
        with testbed.client() as client:
            for number in range(first, count, _THREADS):
                body = {"version": "test/echo", "input": {"text": f"{number}"}}
                try:
                    reply = client.post("/v1/predictions", json=body, headers={"Prefer": "wait"})
                except httpx.HTTPError:
                    continue
                if reply.status_code not in {201, 202}:
                    continue
                made += 1
                record = reply.json()
                right += record["status"] == "succeeded" and record["output"] == f"{number}"
                if record["status"] in {"starting", "processing"}:
                    made -= 1  # the ledger counts it
                    testbed.ledger.accept(record["id"], output=f"{number}", told=False)
        return made, right

    with ThreadPoolExecutor(_THREADS) as pool:
        for made, right in pool.map(some, range(_THREADS)):
            tally.accepted += made
            tally.ended += made
            tally.wrong += made - right


@contextmanager
def _hanging() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listening socket was closed
                while True:
                    held.append(listener.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()
