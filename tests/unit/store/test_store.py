"""The store on real databases: what it keeps, what it refuses, and in what order."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.errors import StatusConflict, StoreError, UnstorableValue
from appliance.domain.prediction import (
    TRANSITIONS,
    Done,
    Log,
    Metric,
    Output,
    Prediction,
    Status,
    Webhook,
)
from appliance.domain.token import Scope, Token
from appliance.store import Cursor, Progress, Store, VersionRow
from tests.support.store_files import make, opened, query, rows_of

pytestmark = pytest.mark.usefixtures("database")


def token(name: str, **changes: Any) -> Token:
    """A token whose digest is made of its name."""
    fields = {
        "id": name,
        "name": name,
        "owner": "me",
        "digest": name * 4,
        "scope": Scope.ADMIN,
        "created_at": 1.0,
    }
    return Token(**{**fields, **changes})


async def in_status(store: Store, status: Status) -> Prediction:
    """A stored prediction that has come to ``status`` by legal moves."""
    record = make()
    await store.create(record)
    if status in (Status.PROCESSING, Status.SUCCEEDED):
        record = record.started(1001.0, 0.0, None)
        await store.claim(record)
    if status.terminal:
        record = record.finished(status, 1002.0, "it broke" if status is Status.FAILED else None)
        await store.finish(record)
    return record


def move(store: Store, record: Prediction) -> asyncio.Future[None]:
    """The write that leads to the status of ``record``."""
    match record.status:
        case Status.STARTING:
            return store.requeue(record)
        case Status.PROCESSING:
            return store.claim(record)
        case _:
            return store.finish(record)


# Records

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(max_size=5), values, max_size=3)
moments = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def test_every_record_survives(path: Path) -> None:
    with asyncio.Runner() as runner:
        store = runner.run(opened(path))

        @settings(max_examples=25, deadline=None)
        @given(
            input=objects,
            output=values,
            metrics=objects,
            logs=st.text(),
            error=st.none() | st.text(),
            deadline=moments,
        )
        def survives(**fields: Any) -> None:
            async def live() -> None:
                created = make(
                    input=fields["input"], deadline=fields["deadline"], model="m/" + fields["logs"][:3]
                )
                claimed = created.started(1001.5, 0.0, None)
                ended = claimed.evolve(status=Status.SUCCEEDED, completed_at=math.pi, n=7, **fields)
                for record, write in ((created, store.create), (claimed, store.claim), (ended, store.finish)):
                    await write(record)
                    assert await store.get(record.id) == record

            runner.run(live())

        survives()
        runner.run(store.close())


@pytest.mark.parametrize(
    "value",
    [2**70, -(2**70), 10**400, math.inf, -math.inf, [2**70, math.inf, {"a": "\0"}], "a\0b", "\U0001f9ff"],
    ids=lambda value: repr(value)[:20],
)
async def test_values_that_some_encodings_lose(store: Store, value: Any) -> None:
    record = make(input={"value": value}).started(1.0, 0.0, None).evolve(output=value, metrics={"m": value})
    await store.create(record.evolve(status=Status.STARTING, attempt=0))
    await store.claim(record)
    await store.append(record.id, 1, [(1, Output([value])), (2, Metric("late", value))])
    stored = await store.get(record.id)
    assert stored is not None
    assert stored.input == {"value": value}
    assert stored.metrics == {"m": value, "late": value}
    assert stored.output == ([*value, value] if isinstance(value, list) else [value])


async def test_nan_stays_nan(store: Store) -> None:
    record = make(input={"value": math.nan, "big": 2**70})
    await store.create(record)
    stored = await store.get(record.id)
    assert stored is not None
    assert math.isnan(stored.input["value"])


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["\ud800", {"\udfff": 1}, [2**70, "\ud800"], object(), nested(100_000), 10**5000],
    ids=["surrogate", "surrogate key", "surrogate as JSON", "object", "too deep", "too long"],
)
async def test_a_value_that_cannot_be_stored_is_refused(store: Store, value: Any) -> None:
    record = make(input={"value": value})
    with pytest.raises(StoreError, match="a value cannot be stored"):
        await store.create(record)
    assert await store.get(record.id) is None
    assert await store.run_counts() == {}


async def test_text_columns_refuse_lone_surrogates_too(store: Store) -> None:
    with pytest.raises(StoreError, match="a value cannot be stored"):
        await store.create(make(logs="\ud800"))


async def test_ids_and_stream_tokens_are_taken_once(store: Store) -> None:
    first = make()
    await store.create(first)
    with pytest.raises(StoreError, match="exists already"):
        await store.create(first.evolve(stream_token="other"))
    with pytest.raises(StoreError, match="exists already"):
        await store.create(make(stream_token=first.stream_token))
    assert await store.get(first.id) == first
    assert await store.run_counts() == {"acme/hello": 1}


async def test_by_stream_token(store: Store) -> None:
    record = await in_status(store, Status.SUCCEEDED)
    await in_status(store, Status.SUCCEEDED)
    assert await store.by_stream_token(record.stream_token) == record
    assert await store.by_stream_token("unknown") is None
    assert await store.get("unknown") is None


# Moves


@pytest.mark.parametrize("before", Status)
@pytest.mark.parametrize("after", Status)
async def test_a_status_moves_only_as_allowed(store: Store, before: Status, after: Status) -> None:
    record = await in_status(store, before)
    attempt = record.attempt + (after is Status.PROCESSING)
    moved = record.evolve(status=after, attempt=attempt, logs="moved")
    if after in TRANSITIONS[before]:
        await move(store, moved)
        assert await store.get(record.id) == moved
    else:
        with pytest.raises(StatusConflict, match=f"cannot become {after}: it is {before} in attempt"):
            await move(store, moved)
        assert await store.get(record.id) == record


async def test_a_claim_or_requeue_of_another_attempt_is_refused(store: Store) -> None:
    record = await in_status(store, Status.STARTING)
    with pytest.raises(StatusConflict):
        await store.claim(record.started(1.0, 0.0, None).evolve(attempt=2))
    claimed = record.started(1.0, 0.0, None)
    await store.claim(claimed)
    with pytest.raises(StatusConflict):
        await store.requeue(claimed.transition(Status.STARTING, attempt=2))
    assert await store.get(record.id) == claimed


async def test_a_cancel_may_overtake_a_queued_claim(store: Store) -> None:
    record = await in_status(store, Status.STARTING)
    claim = store.claim(record.started(1.0, 0.0, None))
    canceled = record.finished(Status.CANCELED, 2.0)
    await store.finish(canceled)
    assert claim.done()
    assert await store.get(record.id) == canceled


async def test_an_unknown_prediction_cannot_move(store: Store) -> None:
    with pytest.raises(StatusConflict, match="it is not stored"):
        await store.finish(make().finished(Status.CANCELED, 1.0))


async def test_records_in_the_wrong_status_are_misuse(store: Store) -> None:
    record = make()
    webhook = Webhook(url="https://example.com", events=("completed",), origin="http://here")
    with pytest.raises(ValueError, match="has a webhook: store the prediction before it ends"):
        store.create(record.finished(Status.CANCELED, 1.0).evolve(webhook=webhook))
    for write in (store.claim, store.finish):
        with pytest.raises(ValueError, match="has the status"):
            write(record)
    with pytest.raises(ValueError, match="it must be starting"):
        store.requeue(record.started(1.0, 0.0, None))


async def test_a_prediction_that_is_created_after_its_end_is_the_same_as_one_that_ended_later(
    store: Store,
) -> None:
    metrics = {"cold_start": 0.25, "input_token_count": 3, "output_token_count": 5}
    ended = [
        make().started(1.0, 0.0, "cpu").evolve(metrics=metrics, output="x").finished(Status.SUCCEEDED, 2.5)
        for _ in range(2)
    ]
    await store.create(ended[0])
    once = await store.usage.rows(["model", "token", "owner"])
    counts = await store.run_counts()
    await store.create(ended[1].evolve(status=Status.PROCESSING, completed_at=None, output=None))
    await store.finish(ended[1])
    assert await store.get(ended[0].id) == ended[0]
    assert await store.get(ended[1].id) == ended[1]
    assert [usage + usage for usage in once] == await store.usage.rows(["model", "token", "owner"])
    assert once[0].succeeded == 1
    assert once[0].output_tokens == 5
    assert {model: 2 * count for model, count in counts.items()} == await store.run_counts()
    with pytest.raises(StatusConflict):
        await store.finish(ended[0])


# Events


async def test_events_are_folded_until_the_end(store: Store, path: Path) -> None:
    record = await in_status(store, Status.PROCESSING)
    events: list[tuple[int, Progress]] = [
        (1, Log("one\n")),
        (2, Output(["a", "b"])),
        (3, Metric("m", 1)),
        (4, Output(["c"])),
        (5, Log("two\n")),
        (6, Metric("m", 2)),
    ]
    await store.append(record.id, 1, events[:3])
    await store.append(record.id, 1, events[2:])  # number 3 again, as after a re-attachment
    expected = record
    for n, event in events:
        expected = expected.apply(event, n)
    assert await store.get(record.id) == expected
    assert await store.by_stream_token(record.stream_token) == expected
    assert await store.unfinished() == [expected]
    await store.finish(expected.finished(Status.SUCCEEDED, 1005.0))
    assert rows_of(path, "events") == 0


async def test_a_requeue_drops_the_events_of_the_attempt(store: Store, path: Path) -> None:
    record = await in_status(store, Status.PROCESSING)
    await store.append(record.id, 1, [(1, Log("lost")), (2, Log("lost"))])
    again = record.transition(Status.STARTING, started_at=None)
    await store.requeue(again)
    assert rows_of(path, "events") == 0
    assert await store.get(record.id) == again
    second = again.started(1003.0, 0.0, None)
    await store.claim(second)
    with pytest.raises(
        StatusConflict, match="cannot store events of attempt 1: it is processing in attempt 2"
    ):
        await store.append(record.id, 1, [(3, Log("late"))])
    await store.append(record.id, 2, [(1, Log("kept"))])
    assert await store.get(record.id) == second.apply(Log("kept"), 1)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PROCESSING])
async def test_only_a_running_prediction_takes_events(store: Store, status: Status, path: Path) -> None:
    record = await in_status(store, status)
    with pytest.raises(StatusConflict, match="cannot store events"):
        await store.append(record.id, record.attempt, [(1, Log("x"))])
    assert rows_of(path, "events") == 0


async def test_done_is_not_appended(store: Store) -> None:
    record = await in_status(store, Status.PROCESSING)
    wrong: Any = [(1, Done("succeeded"))]
    with pytest.raises(ValueError, match="call finish"):
        store.append(record.id, 1, wrong)


# Order and group commit


async def test_writes_take_effect_in_the_order_of_the_calls(store: Store, path: Path) -> None:
    for _ in range(20):
        record = make()
        claimed = record.started(1.0, 0.0, None)
        ended = claimed.apply(Output(["a"]), 1).finished(Status.SUCCEEDED, 2.0)
        unawaited = [
            store.create(record),
            store.claim(claimed),
            store.append(record.id, 1, [(1, Output(["a"]))]),
        ]
        await store.finish(ended)
        assert [future.exception() for future in unawaited] == [None, None, None]
        assert await store.get(record.id) == ended
    assert rows_of(path, "events") == 0


async def test_a_failing_write_fails_alone(store: Store) -> None:
    first, last = make(), make()
    outcomes = await asyncio.gather(
        store.create(first),
        store.create(first),
        store.create(make(input={"a": "\ud800"})),
        store.create(make(error="\ud800")),
        store.claim(make().started(1.0, 0.0, None)),
        store.create(last),
        return_exceptions=True,
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [type(None), StoreError, UnstorableValue, UnstorableValue, StatusConflict, type(None)]
    assert await store.get(first.id) == first
    assert await store.get(last.id) == last
    assert await store.run_counts() == {"acme/hello": 2}


# Lists


def test_pages_walk_everything_once_in_both_directions(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        paged = runner.run(opened(tmp_path / "pages.db"))
        number = 0

        @settings(max_examples=25, deadline=None)
        @given(times=st.lists(st.sampled_from([1.0, 1.5, 2.0]), max_size=12), limit=st.integers(1, 5))
        def walk(times: list[float], limit: int) -> None:
            nonlocal number
            number += 1
            owner = f"owner {number}"  # one store for all examples: owners do not see each other

            async def check() -> None:
                records = [make(created_at=time, owner=owner) for time in times]
                for record in records:
                    await paged.create(record)
                expected = sorted(records, key=lambda record: (record.created_at, record.id), reverse=True)
                pages: list[list[Prediction]] = []
                cursor = None
                while page := await paged.list(owner, cursor=cursor, limit=limit):
                    pages.append(page)
                    cursor = Cursor(page[-1].created_at, page[-1].id)
                assert [record for page in pages for record in page] == expected
                assert all(len(page) == limit for page in pages[:-1])
                for before, page in itertools.pairwise(pages):
                    back = Cursor(page[0].created_at, page[0].id, backwards=True)
                    assert await paged.list(owner, cursor=back, limit=limit) == before

            runner.run(check())

        walk()
        runner.run(paged.close())


async def test_list_filters(store: Store) -> None:
    old = make(created_at=1.0)
    other_model = make(created_at=2.0, model="acme/other")
    failed = make(created_at=3.0)
    foreign = make(created_at=4.0, owner="you")
    for record in (old, other_model, failed, foreign):
        await store.create(record)
    failed = failed.finished(Status.FAILED, 5.0, "no")
    await store.finish(failed)
    assert await store.list("me") == [failed, other_model, old]
    assert await store.list("you") == [foreign]
    assert await store.list("nobody") == []
    assert await store.list("me", model="acme/other") == [other_model]
    assert await store.list("me", status=Status.FAILED) == [failed]
    assert await store.list("me", status=Status.STARTING, model="acme/hello") == [old]
    assert await store.list("me", created_after=2.0) == [failed, other_model]
    assert await store.list("me", created_before=3.0) == [other_model, old]
    assert await store.list("me", created_after=2.0, created_before=3.0) == [other_model]
    assert await store.list("me", created_before=3.0, cursor=Cursor(2.0, other_model.id)) == [old]
    assert await store.list("me", created_before=2.0, cursor=Cursor(3.0, failed.id)) == [old]
    backwards = Cursor(1.0, old.id, backwards=True)
    assert await store.list("me", cursor=backwards, created_after=3.0) == [failed]
    assert await store.list("me", cursor=backwards, created_before=3.0) == [other_model]
    assert await store.list("me", cursor=backwards, model="acme/hello") == [failed]
    assert await store.list(None) == [foreign, failed, other_model, old]
    assert await store.list(None, created_before=4.0, cursor=backwards) == [failed, other_model]
    assert await store.list(None, status=Status.STARTING, limit=2) == [foreign, other_model]
    assert await store.list("you", training=None) == [foreign]


async def test_predictions_that_took_long_are_listed(store: Store) -> None:
    """From creation to end; predictions that have not ended are left out."""
    waits, long, short, quick = (make(created_at=at) for at in (1.0, 2.0, 3.0, 4.0))
    for record in (waits, long, short, quick):
        await store.create(record)
    long = long.finished(Status.FAILED, 12.0, "no")
    short, quick = short.finished(Status.CANCELED, 5.0), quick.finished(Status.CANCELED, 4.5)
    for record in (long, short, quick):
        await store.finish(record)
    for owner in ("me", None):
        assert await store.list(owner, slower_than=0.0) == [quick, short, long]
        assert await store.list(owner, slower_than=1.0) == [short, long]
        assert await store.list(owner, slower_than=2.0) == [long]  # exactly 2 s is not longer
        assert await store.list(owner, slower_than=1.5, status=Status.CANCELED) == [short]
        backwards = Cursor(0.0, "", backwards=True)
        assert await store.list(owner, slower_than=1.0, cursor=backwards, limit=1) == [long]
    assert (await store.search("me", "no", slower_than=11.0)).predictions == []
    assert (await store.search("me", "no", slower_than=9.0)).predictions == [long]


async def test_unfinished_are_all_that_are_not_terminal_oldest_first(store: Store) -> None:
    young = make(created_at=9.0)
    await store.create(young)
    by_status = {status: await in_status(store, status) for status in Status}
    found = await store.unfinished()
    expected = sorted(
        [by_status[Status.STARTING], by_status[Status.PROCESSING]], key=lambda record: record.id
    )
    assert found == [young, *expected]


# Versions, counters, tokens


async def test_a_version_keeps_the_time_it_was_first_seen(store: Store) -> None:
    first = VersionRow(id="1" * 64, model="acme/hello", created_at=1.0, document={"a": 1})
    assert await store.record_version(first) == first
    later = await store.record_version(
        VersionRow(id="1" * 64, model="acme/hello", created_at=5.0, document={"b": 2**70})
    )
    assert later == VersionRow(id="1" * 64, model="acme/hello", created_at=1.0, document={"b": 2**70})
    assert await store.version("1" * 64, "acme/hello") == later


async def test_versions_of_models(store: Store) -> None:
    rows = [
        VersionRow(id=id, model=model, created_at=at, document={})
        for id, model, at in (("1", "a/a", 1.0), ("2", "a/a", 2.0), ("2", "b/b", 3.0))
    ]
    for row in rows:
        await store.record_version(row)
    assert await store.versions("a/a") == [rows[1], rows[0]]
    assert await store.versions("c/c") == []
    assert await store.version("2", "a/a") == rows[1]
    assert await store.version("2", "b/b") == rows[2]
    assert await store.version("1", "b/b") is None
    assert await store.version("3", "a/a") is None


async def test_run_counts_survive_the_records(store: Store, path: Path) -> None:
    for model, count in (("a/a", 3), ("b/b", 1)):
        for _ in range(count):
            await store.create(make(model=model))
    query(path, "DELETE FROM inputs", "DELETE FROM predictions")
    assert await store.run_counts() == {"a/a": 3, "b/b": 1}


async def test_tokens(store: Store) -> None:
    first, second = token("first"), token("second", created_at=2.0)
    await store.add_token(second)
    await store.add_token(first)
    assert await store.list_tokens() == [first, second]
    assert await store.find_token(first.digest) == first
    revoked = await store.revoke_token(first.id)
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert await store.find_token(first.digest) is None
    assert await store.revoke_token(first.id) == revoked
    assert await store.list_tokens() == [revoked, second]
    assert await store.revoke_token("unknown") is None
    with pytest.raises(StoreError, match="token first exists already"):
        await store.add_token(first)


async def test_versions_stay_while_something_refers_to_them(store: Store) -> None:
    for number in range(3):
        await store.record_version(
            VersionRow(id=str(number) * 64, model="acme/hello", created_at=number, document={})
        )
    await store.record_version(VersionRow(id="0" * 64, model="acme/other", created_at=1.0, document={}))
    await store.create(make(version="1" * 64))
    await store.forget_versions("acme/hello", "2" * 64)
    assert [row.id[0] for row in await store.versions("acme/hello")] == ["2", "1"]
    assert [row.id[0] for row in await store.versions("acme/other")] == ["0"]
