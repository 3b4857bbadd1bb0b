"""States into which an appliance is put before a fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import httpx

from scripts.faults.testbed import Testbed
from tests.support.appliance_process import wait_for
from tests.support.webhook_receiver import Received

_MANY: Final = 3
_WORDS: Final = "one two three four five six seven eight nine ten " * 3
_PIECES: Final = 40  # pieces of an upload
_PIECE: Final = b"0123456789abcdef" * 2048

#: Puts the appliance into a state. Returns a function to call once the appliance has recovered.
State = Callable[[Testbed], Callable[[], None]]


def _nothing() -> None:
    pass


def starting(testbed: Testbed) -> Callable[[], None]:
    """Predictions wait while their model is loaded."""
    with testbed.client() as client:
        client.post("/admin/models/test/slow/unload")
        wait_for(lambda: not _loaded(client, "test/slow"), "the model to be unloaded", 60)
        for number in range(_MANY):
            testbed.create(client, "test/slow", f"slow {number}", text=f"slow {number}")
    return _nothing


def running(testbed: Testbed) -> Callable[[], None]:
    """Predictions are running."""
    with testbed.client() as client:
        create = partial(testbed.create, client, "test/echo")
        ids = [create(f"run {n}", text=f"run {n}", delay=3) for n in range(_MANY)]
        wait_for(lambda: all(_record(client, id)["status"] == "processing" for id in ids), "them to run", 60)
    return _nothing


def streaming(testbed: Testbed) -> Callable[[], None]:
    """Predictions have streamed a part of their output."""
    with testbed.client() as client:
        ids = [
            testbed.create(client, "test/stream", _WORDS, text=_WORDS, chunk_delay=0.1) for _ in range(_MANY)
        ]
        wait_for(lambda: all(_record(client, id).get("output") for id in ids), "the first words", 60)
    return _nothing


def webhook(testbed: Testbed) -> Callable[[], None]:
    """Predictions have ended, and the receiver refuses their webhooks until the appliance has recovered."""
    refused: set[str] = set()

    def refuse(one: Received) -> int:
        refused.add(one.record["id"])
        testbed.receiver.received.remove(one)  # a refused webhook does not count as received
        return 503

    testbed.receiver.answer = refuse
    with testbed.client() as client:
        ids = [testbed.create(client, "test/echo", f"hook {n}", text=f"hook {n}") for n in range(_MANY)]
        wait_for(lambda: refused >= set(ids), "the first webhooks", 60)

    def heal() -> None:
        testbed.receiver.answer = lambda _: 200

    return heal


def uploading(testbed: Testbed) -> Callable[[], None]:
    """One file is uploaded, and another is half uploaded."""
    with testbed.client() as client:
        whole = client.post("/v1/files", files={"content": _PIECE})
        whole.raise_for_status()
        testbed.ledger.uploaded(whole.json()["id"], _PIECE)
    begun = threading.Event()
    thread = threading.Thread(target=_upload, args=(testbed, begun))
    thread.start()
    begun.wait(30)
    return partial(thread.join, 60)


STATES: Final[dict[str, State]] = {
    "starting": starting,
    "running": running,
    "streaming": streaming,
    "webhook": webhook,
    "uploading": uploading,
}


def _upload(testbed: Testbed, begun: threading.Event) -> None:
    """Upload a file slowly; enter it in the ledger if the appliance answers 201."""
    head = b'--x\r\nContent-Disposition: form-data; name="content"; filename="slow.bin"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        for number in range(_PIECES):
            yield _PIECE
            if number == _PIECES // 4:
                begun.set()
            time.sleep(0.05)
        yield b"\r\n--x--\r\n"

    try:
        with testbed.client() as client:
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            reply = client.post("/v1/files", content=body(), headers=headers)
    except httpx.HTTPError:
        return
    finally:
        begun.set()
    if reply.status_code == 201:
        testbed.ledger.uploaded(reply.json()["id"], _PIECE * _PIECES)


def _record(client: httpx.Client, id: str | None) -> dict[str, Any]:
    record: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
    return record


def _loaded(client: httpx.Client, model: str) -> bool:
    devices = client.get("/admin/residency").json()["devices"]
    return any(model in str(device) for device in devices)
