"""What an appliance has accepted, held against what became of it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import httpx

from tests.accounting import all_predictions, is_quiet, summed, used
from tests.receiver import Receiver

_OVER: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})
_NOTES: Final = 3  # that a case shows

T = TypeVar("T")


class Expected(NamedTuple):
    """What is known of a prediction when it is accepted."""

    output: str | None  # joined, if it succeeds; None: not looked at
    lines: int  # of its logs, at least
    told: bool  # whether the receiver hears of its end


class Tally:
    """The counts of one case."""

    def __init__(self) -> None:
        self.accepted = 0
        self.ended = 0
        self.wrong = 0  # ended other than the record, the receiver or the usage says
        self.lost = 0  # neither ended nor failed with a reason, or its end was never told
        self.repeated = 0  # ends that were told again, word for word, which webhooks may be
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep the first few things to say about the case, the first line of each."""
        text = text.strip().partition("\n")[0]
        if len(self.notes) < _NOTES and text not in self.notes:
            self.notes.append(text)


class Ledger:
    """Everything that was accepted in one case. Filled from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.predictions: dict[str, Expected] = {}
        self.uploads: dict[str, str] = {}  # id -> SHA-256

    def accept(self, id: str, *, output: str | None, told: bool, lines: int = 0) -> None:
        """The appliance has answered 201 for this prediction."""
        with self._lock:
            self.predictions[id] = Expected(output, lines, told)

    def uploaded(self, id: str, content: bytes) -> None:
        """The appliance has answered 201 for a file with this content."""
        with self._lock:
            self.uploads[id] = hashlib.sha256(content).hexdigest()

    def check(
        self, client: httpx.Client, receiver: Receiver, files: Path, patience: float, tally: Tally
    ) -> None:
        """Wait for every end, for ``patience`` seconds in all, and count into ``tally``."""
        deadline = time.monotonic() + patience
        tally.accepted += len(self.predictions) + len(self.uploads)
        for id, expected in list(self.predictions.items()):  # a caller may go on meanwhile
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
        """Every prediction that is over counts once in the usage, however often it ran."""
        if _eventually(lambda: is_quiet(client) or None, time.monotonic() + 30) is None:
            return  # what has not ended is counted as lost already
        if used(client, "model") != summed(all_predictions(client), "model"):
            tally.wrong += 1
            tally.note("the usage does not add up to the predictions")

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
            tally.note(f"{record['id']} has another output than was asked for")
        lines = record["logs"].count("\n")
        if lines < expected.lines and "lines" not in record["logs"][-500:]:
            tally.wrong += 1
            tally.note(f"{record['id']} has {lines:,} of {expected.lines:,} lines, and does not say so")


def _ended(client: httpx.Client, id: str) -> dict[str, Any] | None:
    reply = client.get(f"/v1/predictions/{id}")
    record: dict[str, Any] = reply.json() if reply.status_code == 200 else {}
    return record if record.get("status") in _OVER else None


def _seen(client: httpx.Client, id: str) -> str:
    """What the appliance says of it, in a word."""
    try:
        reply = client.get(f"/v1/predictions/{id}")
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__})"
    return str(reply.json().get("status")) if reply.status_code == 200 else f"status {reply.status_code}"


def _check_told(receiver: Receiver, record: dict[str, Any], deadline: float, tally: Tally) -> None:
    told = _eventually(lambda: receiver.about(record["id"]) or None, deadline)
    if told is None:
        tally.lost += 1
        tally.note(f"the end of {record['id']} was never told to the receiver")
        return
    tally.repeated += len(told) - 1
    if any(one.record != record for one in told):
        tally.wrong += 1
        tally.note(f"the receiver was told another end of {record['id']} than the record has")


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
        tally.note(f"file {id} has another content")


def _json(client: httpx.Client, path: str) -> dict[str, Any] | None:
    reply = client.get(path)
    found: dict[str, Any] | None = reply.json() if reply.status_code == 200 else None
    return found


def _eventually(look: Callable[[], T | None], deadline: float) -> T | None:
    """The first thing that ``look`` finds, which is asked at least once; None after the deadline."""
    while True:
        try:
            found = look()
        except httpx.HTTPError:
            found = None
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
