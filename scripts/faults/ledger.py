"""Compares the predictions and files that an appliance accepted with their results."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import httpx

from tests.support.usage_totals import all_predictions, is_quiet, summed, used
from tests.support.webhook_receiver import Receiver

_OVER: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})
_NOTES: Final = 3  # notes shown for one case

T = TypeVar("T")


class Expected(NamedTuple):
    """The expected result of an accepted prediction."""

    output: str | None  # joined output of a success; None: not checked
    lines: int  # minimum number of lines in its logs
    told: bool  # whether the receiver gets its last webhook


class Tally:
    """The counts of one case."""

    def __init__(self) -> None:
        self.accepted = 0
        self.ended = 0
        self.wrong = 0  # output, webhook, usage or file content is not as expected
        self.lost = 0  # did not end, ended without a reason, no last webhook, or file gone
        self.repeated = 0  # last webhooks that arrived again with the same body, which is allowed
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep the first line of ``text``, unless the case already has ``_NOTES`` notes."""
        text = text.strip().partition("\n")[0]
        if len(self.notes) < _NOTES and text not in self.notes:
            self.notes.append(text)


class Ledger:
    """Accepted predictions and files of one case. Filled from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.predictions: dict[str, Expected] = {}
        self.uploads: dict[str, str] = {}  # id -> SHA-256

    def accept(self, id: str, *, output: str | None, told: bool, lines: int = 0) -> None:
        """Enter a prediction for which the appliance answered 201."""
        with self._lock:
            self.predictions[id] = Expected(output, lines, told)

    def uploaded(self, id: str, content: bytes) -> None:
        """Enter a file with this content for which the appliance answered 201."""
        with self._lock:
            self.uploads[id] = hashlib.sha256(content).hexdigest()

    def check(
        self, client: httpx.Client, receiver: Receiver, files: Path, patience: float, tally: Tally
    ) -> None:
        """Wait up to ``patience`` seconds for all predictions to end, check them, and add to ``tally``."""
        deadline = time.monotonic() + patience
        tally.accepted += len(self.predictions) + len(self.uploads)
        for id, expected in list(self.predictions.items()):  # a caller may add predictions meanwhile
            record = _eventually(partial(_ended, client, id), deadline)
            if record is None:
                tally.lost += 1
                tally.note(f"{id} has not ended: {_seen(client, id)}")
                continue
            tally.ended += 1
            self._check_record(record, expected, tally)
            if expected.told:
                _check_told(receiver, record, deadline, tally)
        for id, digest in self.uploads.items():
            _check_upload(client, files, id, digest, deadline, tally)

    @staticmethod
    def check_usage(client: httpx.Client, tally: Tally) -> None:
        """Check that each ended prediction counts once in the usage, however often it ran."""
        if _eventually(lambda: is_quiet(client) or None, time.monotonic() + 30) is None:
            return  # unfinished predictions are already counted as lost
        if used(client, "model") != summed(all_predictions(client), "model"):
            tally.wrong += 1
            tally.note("the usage is not the sum of the predictions")

    def _check_record(self, record: dict[str, Any], expected: Expected, tally: Tally) -> None:
        if record["status"] != "succeeded" and not record["error"]:
            tally.lost += 1
            tally.note(f"{record['id']} is {record['status']} without a reason")
        if record["status"] == "failed":
            tally.note(f"failed: {record['error']}")
        if record["status"] != "succeeded":
            return
        output = record["output"]
        if isinstance(output, list):
            output = "".join(map(str, output))
        if expected.output is not None and output != expected.output:
            tally.wrong += 1
            tally.note(f"{record['id']} has an unexpected output")
        lines = record["logs"].count("\n")
        if lines < expected.lines and "lines" not in record["logs"][-500:]:
            tally.wrong += 1
            tally.note(f"{record['id']} has {lines:,} of {expected.lines:,} lines and no notice")


def _ended(client: httpx.Client, id: str) -> dict[str, Any] | None:
    reply = client.get(f"/v1/predictions/{id}")
    record: dict[str, Any] = reply.json() if reply.status_code == 200 else {}
    return record if record.get("status") in _OVER else None


def _seen(client: httpx.Client, id: str) -> str:
    """The status of a prediction, or why it cannot be read."""
    try:
        reply = client.get(f"/v1/predictions/{id}")
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__})"
    return str(reply.json().get("status")) if reply.status_code == 200 else f"status {reply.status_code}"


def _check_told(receiver: Receiver, record: dict[str, Any], deadline: float, tally: Tally) -> None:
    told = _eventually(lambda: receiver.about(record["id"]) or None, deadline)
    if told is None:
        tally.lost += 1
        tally.note(f"the receiver never got the last webhook of {record['id']}")
        return
    tally.repeated += len(told) - 1
    if any(one.record != record for one in told):
        tally.wrong += 1
        tally.note(f"the last webhook of {record['id']} differs from its record")


def _check_upload(
    client: httpx.Client, files: Path, id: str, digest: str, deadline: float, tally: Tally
) -> None:
    found = _eventually(lambda: _json(client, f"/v1/files/{id}"), deadline)
    content = files / "uploads" / id
    if found is None or not content.exists():
        tally.lost += 1
        tally.note(f"file {id} is gone")
        return
    tally.ended += 1
    if not found["checksums"]["sha256"] == hashlib.sha256(content.read_bytes()).hexdigest() == digest:
        tally.wrong += 1
        tally.note(f"the content of file {id} changed")


def _json(client: httpx.Client, path: str) -> dict[str, Any] | None:
    reply = client.get(path)
    found: dict[str, Any] | None = reply.json() if reply.status_code == 200 else None
    return found


def _eventually(look: Callable[[], T | None], deadline: float) -> T | None:
    """Call ``look`` at least once, until it returns a result or the deadline passes; None if it does."""
    while True:
        try:
            found = look()
        except httpx.HTTPError:
            found = None
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
