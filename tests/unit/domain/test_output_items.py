"""The output of a running iterator: records share one list, and each keeps the items it was made with."""

from __future__ import annotations

import sys

from appliance.domain.prediction import Output, Prediction, Status


def running() -> Prediction:
    record = Prediction(
        id="p", model="a/b", version="v", owner="me", input={}, created_at=0.0, stream_token="t"
    )
    return record.started(1.0, 0.0, None)


def test_an_append_copies_no_items() -> None:
    """Every list that holds the first item has a reference to it, so references count the copies."""
    first = object()
    records = [running().apply(Output([first]), 1)]
    references = sys.getrefcount(first)
    for number in range(2, 1001):
        records.append(records[-1].apply(Output([number]), number))
    assert sys.getrefcount(first) == references


def test_a_record_keeps_its_items_when_later_records_get_more() -> None:
    records = [running()]
    for number in range(1, 6):
        records.append(records[-1].apply(Output([number]), number))
    assert [record.plain_output for record in records] == [
        None, [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5],
    ]  # fmt: skip
    assert records[3].output[1:] == [2, 3]
    assert records[3].output[-1] == 3
    assert list(records[3].output) == [1, 2, 3]


def test_two_records_made_from_one_do_not_see_each_others_items() -> None:
    record = running().apply(Output(["a"]), 1)
    one, other = record.apply(Output(["b"]), 2), record.apply(Output(["c"]), 2)
    assert (record.output, one.output, other.output) == (["a"], ["a", "b"], ["a", "c"])


def test_an_ended_record_has_a_plain_list() -> None:
    record = running().apply(Output(["a"]), 1).finished(Status.SUCCEEDED, 2.0)
    assert type(record.output) is list
