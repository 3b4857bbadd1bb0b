"""Predictions as JSON lines: exported, and imported into another store."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import ApplianceError, StoreError
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Prediction, Status
from appliance.driver import transfer
from appliance.store import Store, imports
from tests.support import store_files
from tests.support.store_files import opened


def make(**changes: Any) -> Prediction:
    return store_files.make(**{"created_at": 1000.25, **changes})


def ended(**changes: Any) -> Prediction:
    times = {"started_at": 1001.0, "completed_at": 1002.5}
    metrics = {"predict_time": 1.5, "input_token_count": 3}
    given = {"status": Status.SUCCEEDED, "output": ["a", 1], "metrics": metrics, **times, **changes}
    return make(**given)


async def exported(store: Store, file: Path) -> tuple[int, int]:
    out = io.BytesIO()
    counts = await transfer.export(store, out, "http://here")
    file.write_bytes(out.getvalue())
    return counts


async def test_predictions_keep_everything_but_secrets(store: Store, tmp_path: Path) -> None:
    records = [ended(logs="log", owner="you"), ended(status=Status.FAILED, error="broke", output=None)]
    records += [ended(created_at=2000.0 + number) for number in range(250)]
    for record in records:
        await store.create(record)
    await store.create(make())
    await store.create(ended(destination="me/tuned"))
    assert await exported(store, tmp_path / "p.jsonl") == (252, 1)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert lines[0]["urls"]["get"] == f"http://here/v1/predictions/{records[-1].id}"
    other = await opened(tmp_path / "other" / "appliance.db")
    assert transfer.check(tmp_path / "p.jsonl") == 252
    assert await transfer.load(other, tmp_path / "p.jsonl", "nobody") == (252, 0)
    for record in records:
        found = await other.get(record.id)
        assert found is not None
        assert found.stream_token != record.stream_token
        assert found.evolve(stream_token=record.stream_token, attempt=0) == record
    assert await other.run_counts() == {"acme/hello": 252}
    await store.create(ended(id="a" * 26))
    await exported(store, tmp_path / "q.jsonl")
    assert await transfer.load(other, tmp_path / "q.jsonl", "nobody") == (1, 252)
    await other.close()


async def test_output_files_become_urls(store: Store, tmp_path: Path) -> None:
    file = OutputFile(id="f", name="a.txt", content_type="text/plain", size=1, sha256="", md5="", path="p")
    await store.create(ended(output=[file]))
    await exported(store, tmp_path / "p.jsonl")
    (line,) = (tmp_path / "p.jsonl").read_text().splitlines()
    assert json.loads(line)["output"] == ["http://here/outputs/f/a.txt"]


GOOD = {
    "id": "b" * 26,
    "model": "a/b",
    "version": "0" * 64,
    "input": {},
    "status": "succeeded",
    "created_at": "2026-01-01T00:00:00Z",
    "completed_at": "2026-01-01T00:00:01Z",
}


async def test_a_line_without_an_owner_gets_one_and_empty_lines_are_skipped(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(f"\n{json.dumps(GOOD)}\n\n")
    assert transfer.check(tmp_path / "p.jsonl") == 1
    assert await transfer.load(store, tmp_path / "p.jsonl", "somebody") == (1, 0)
    record = await store.get("b" * 26)
    assert record is not None
    assert record.owner == "somebody"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "x"}, "id"),
        ({"status": "processing"}, "has not ended"),
        ({"version": "1"}, "version"),
        ({"input": []}, "input"),
        ({"created_at": "2026-01-01T00:00:00"}, "created_at has no time zone"),
        ({"completed_at": None}, "completed_at"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    lines = [json.dumps(GOOD), "not JSON", json.dumps(GOOD | change)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    with pytest.raises(ApplianceError) as refusal:
        transfer.check(tmp_path / "p.jsonl")
    first, second, third = refusal.value.detail.splitlines()
    assert first.endswith("p.jsonl: nothing was imported:")
    assert second.startswith("line 2: ")
    assert third.startswith("line 3: ")
    assert reason in third


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("x\n" * 25)
    with pytest.raises(ApplianceError, match="and 5 more"):
        transfer.check(tmp_path / "p.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApplianceError, match="cannot be read: No such file"):
        transfer.check(tmp_path / "p.jsonl")


async def test_a_failure_in_the_middle_says_what_was_imported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps(GOOD | {"id": f"{number:026}"}) for number in range(150)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    add = imports.add_missing

    async def failing(store: Store, batch: list[Prediction]) -> int:
        if len(batch) < 100:
            raise StoreError("the disk is full")
        return await add(store, batch)

    monkeypatch.setattr(imports, "add_missing", failing)
    with pytest.raises(ApplianceError, match="the disk is full: 100 predictions were imported"):
        await transfer.load(store, tmp_path / "p.jsonl", "me")
    monkeypatch.undo()
    assert await transfer.load(store, tmp_path / "p.jsonl", "me") == (50, 100)
