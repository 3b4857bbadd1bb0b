"""The search of a text in predictions: what it finds, and where it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.domain.prediction import Prediction, Status
from appliance.store import Cursor, Store, predictions
from tests.support.store_files import opened

pytestmark = pytest.mark.usefixtures("database")


def made(number: int, input: dict[str, Any], **more: Any) -> Prediction:
    given: dict[str, Any] = {
        "id": f"id-{number:04}",
        "model": "a/b",
        "version": "v",
        "owner": "me",
        "status": Status.SUCCEEDED,
        "source": "api",
        "created_at": float(number),
        "completed_at": float(number),
        "stream_token": f"s{number}",
        "input": input,
        **more,
    }
    return Prediction(**given)


async def ids(store: Store, text: str, **more: Any) -> list[str]:
    return [each.id for each in (await store.search("me", text, **more)).predictions]


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    store = await opened(tmp_path / "appliance.db")
    await store.own()
    yield store
    await store.close()


async def test_inputs_outputs_errors_and_ids_are_searched_in_any_case(store: Store) -> None:
    await store.create(made(1, {"prompt": "A small Cat"}))
    await store.create(made(2, {"prompt": "x"}, output=["Ein ÄPFELchen", "b"]))
    await store.create(made(3, {"prompt": "x", "big": 2**70}, error="No such Key", status=Status.FAILED))
    assert await ids(store, "small cat") == ["id-0001"]
    assert await ids(store, "äpfel") == ["id-0002"]
    assert await ids(store, "such key") == ["id-0003"]
    assert await ids(store, str(2**70)) == ["id-0003"]
    assert await ids(store, "id-0002") == ["id-0002"]
    assert await ids(store, "x") == ["id-0003", "id-0002"]
    assert await ids(store, "x", status=Status.FAILED) == ["id-0003"]
    assert await ids(store, "chenb") == []  # two strings are not one text
    assert await ids(store, "nothing") == []


async def test_a_search_stops_at_its_bound_and_goes_on_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        await store.create(made(number, {"prompt": "wanted" if number in {0, 9} else "x"}))
    monkeypatch.setattr(predictions, "SEARCHED", 4)
    first = await store.search("me", "wanted", limit=5)
    assert [each.id for each in first.predictions] == ["id-0009"]
    assert first.stopped == Cursor(6.0, "id-0006", False)
    second = await store.search("me", "wanted", limit=5, cursor=first.stopped)
    assert (second.predictions, second.stopped) == ([], Cursor(2.0, "id-0002", False))
    third = await store.search("me", "wanted", limit=5, cursor=second.stopped)
    assert [each.id for each in third.predictions] == ["id-0000"]
    assert third.stopped is None
    back = await store.search("me", "wanted", limit=5, cursor=Cursor(4.0, "id-0004", True))
    assert (back.predictions, back.stopped) == ([], Cursor(8.0, "id-0008", True))
    monkeypatch.setattr(predictions, "SEARCHED_BYTES", 1)
    assert (await store.search("me", "wanted", limit=5)).stopped == Cursor(9.0, "id-0009", False)
