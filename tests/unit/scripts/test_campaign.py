"""What scripts/campaign counts as wrong and as lost."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.faults.__main__ import Result, main
from scripts.faults.ledger import Ledger, Tally
from tests.support.webhook_receiver import Received, Receiver

GOOD: dict[str, Any] = {
    "id": "a", "status": "succeeded", "output": ["x ", "y"], "error": None, "logs": "1\n2\n",
    "completed_at": "now",
}  # fmt: skip


def counted(
    tmp_path: Path, record: dict[str, Any] | None, told: list[dict[str, Any]], *, lines: int = 2
) -> tuple[int, int, int, int]:
    """What is counted of a prediction that should give ``x y`` and tell its end, with this record."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404) if record is None else httpx.Response(200, json=record)

    ledger, tally, receiver = Ledger(), Tally(), Receiver(0)
    receiver.received = [Received("/", {}, json.dumps(one).encode()) for one in told]
    ledger.accept("a", output="x y", told=True, lines=lines)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        ledger.check(client, receiver, tmp_path, 0.0, tally)
    assert bool(tally.notes) == bool(tally.wrong or tally.lost or (record or {}).get("error"))
    return tally.accepted, tally.ended, tally.wrong, tally.lost


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, (1, 1, 0, 0)),
        ({"output": "x y"}, (1, 1, 0, 0)),
        ({"output": ["x "]}, (1, 1, 1, 0)),
        ({"output": [{"score": 1.0}]}, (1, 1, 1, 0)),
        ({"status": "failed", "error": "its host was killed"}, (1, 1, 0, 0)),
        ({"status": "failed", "error": None}, (1, 1, 0, 1)),
        ({"status": "canceled", "error": ""}, (1, 1, 0, 1)),
        ({"status": "processing"}, (1, 0, 0, 1)),
        ({"logs": "1\n"}, (1, 1, 1, 0)),
        ({"logs": "1\n(5 lines were left out)"}, (1, 1, 0, 0)),
    ],
)
def test_a_record_is_held_against_what_was_asked_for(
    tmp_path: Path, changed: dict[str, Any], counts: tuple[int, ...]
) -> None:
    record = GOOD | changed
    assert counted(tmp_path, record, [record]) == counts


def test_what_is_gone_is_lost(tmp_path: Path) -> None:
    assert counted(tmp_path, None, []) == (1, 0, 0, 1)


def test_an_end_is_told_at_least_once_and_as_it_is(tmp_path: Path) -> None:
    assert counted(tmp_path, GOOD, []) == (1, 1, 0, 1)
    assert counted(tmp_path, GOOD, [GOOD, GOOD]) == (1, 1, 0, 0)
    assert counted(tmp_path, GOOD, [GOOD, GOOD | {"status": "failed"}]) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("there", "digest", "counts"),
    [
        (b"it", b"it", (1, 0, 0)),
        (b"it", b"no", (1, 1, 0)),
        (b"no", b"it", (1, 1, 0)),
        (None, b"it", (0, 0, 1)),
    ],
)
def test_files_are_held_against_what_was_sent(
    tmp_path: Path, there: bytes | None, digest: bytes, counts: tuple[int, int, int]
) -> None:
    (tmp_path / "uploads").mkdir()
    if there is not None:
        (tmp_path / "uploads" / "f").write_bytes(there)
    checksums = {"sha256": hashlib.sha256(digest).hexdigest()}
    ledger, tally = Ledger(), Tally()
    ledger.uploaded("f", b"it")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"checksums": checksums}))
    with httpx.Client(transport=transport, base_url="http://x") as client:
        ledger.check(client, Receiver(0), tmp_path, 0.0, tally)
    assert (tally.ended, tally.wrong, tally.lost) == counts


def test_a_case_is_good_if_it_recovered_was_skipped_or_was_refused_with_a_reason() -> None:
    refused = Tally()
    refused.note("did not start: too few file descriptors")
    silent = Tally()
    lost = Tally()
    lost.lost = 1
    assert Result("a", Tally(), 1.0, None).good
    assert Result("a", Tally(), None, "needs root").good
    assert Result("a", refused, None, None).good
    assert not Result("a", silent, None, None).good
    assert not Result("a", lost, 1.0, None).good


def test_cases_are_chosen_by_pattern(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["campaign", "--list", "--cases", "gateway/*/running", "--cases", "disk/*"]
    )
    assert main() == 0
    assert capsys.readouterr().out.split() == ["gateway/kill/running", "gateway/stop/running", "disk/full"]
    monkeypatch.setattr("sys.argv", ["campaign", "--cases", "nothing"])
    with pytest.raises(SystemExit):
        main()
    assert "no case matches nothing" in capsys.readouterr().err
