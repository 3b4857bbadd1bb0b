"""Usage: exact sums, counted once, kept for ever, priced, and shown to whom it belongs."""

from __future__ import annotations

import asyncio
import csv
import io
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Config
from appliance.domain import token, usage
from appliance.domain.prediction import Metric, Prediction, Status, new_id, new_stream_token
from appliance.domain.token import Scope, Token
from appliance.domain.usage import KEYS, Usage
from appliance.store import Store, rows
from appliance.store.queries import STEPS
from tests.support.api_client import Api, services_of
from tests.support.engine_bench import MIB, Bench
from tests.support.store_files import created

DAY = 86400.0
NOON = 1_800_000_000.0 - 1_800_000_000.0 % DAY + DAY / 2  # of some day


def made(**changes: Any) -> Prediction:
    prediction = Prediction(
        id=new_id(),
        model="a/b",
        version="v",
        owner="me",
        input={},
        created_at=NOON,
        stream_token=new_stream_token(),
    )
    return prediction.evolve(**changes)


async def ended(
    store: Store,
    status: Status = Status.SUCCEEDED,
    *,
    took: float | None = 1.0,
    at: float = NOON,
    metrics: dict[str, Any] | None = None,
    hardware: str = "cpu",
    **fields: Any,
) -> Prediction:
    """A stored prediction that ran for ``took`` seconds, or never, and ended at ``at``."""
    record = made(created_at=at - (took or 0.0), **fields)
    await store.create(record)
    if took is not None:
        record = record.started(record.created_at, 0.0, hardware).evolve(metrics=metrics or {})
        await store.claim(record)
        record = record.apply(Metric("predict_time", round(took, 6)), 1)
    record = record.finished(status, at)
    await store.finish(record)
    return record


def micros(*records: Prediction) -> int:
    """The sum of what the API shows as ``metrics.predict_time``, in microseconds."""
    return sum(int(Decimal(repr(record.metrics.get("predict_time", 0))) * 1_000_000) for record in records)


async def everything(store: Store) -> Usage:
    return usage.total(await store.usage.rows(()), {}).usage


# -- adding up


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_sums_are_exact(times: list[float]) -> None:
    records = [
        made(started_at=NOON)
        .evolve(metrics={"predict_time": round(time, 6)})
        .evolve(status=Status.SUCCEEDED, completed_at=NOON)
        for time in times
    ]
    total = usage.total([usage.of(record) for record in records], {}).usage
    assert total.predict_us == micros(*records)
    assert Decimal(repr(usage.seconds(total.predict_us))) * 1_000_000 == total.predict_us
    assert total.predictions == len(times)


@pytest.mark.parametrize("value", [None, True, "1", -1, float("nan"), float("inf"), 10**400, 2**63, [1], {}])
def test_what_a_model_makes_up_counts_nothing(value: Any) -> None:
    metrics = dict.fromkeys(("predict_time", "cold_start", "input_token_count", "output_token_count"), value)
    counted = usage.of(made(status=Status.FAILED, completed_at=NOON, metrics=metrics))
    assert counted == Usage(
        day=counted.day, model="a/b", work="prediction", owner="me", token="", hardware="", failed=1
    )


async def test_a_prediction_counts_whole_on_the_day_of_its_end(store: Store) -> None:
    midnight = NOON + DAY / 2
    await ended(store, took=100.0, at=midnight - 0.0001)
    await ended(store, took=100.0, at=midnight)
    rows = await store.usage.rows(["day"])
    assert [(row.day, row.predict_us) for row in rows] == [
        (usage.day(NOON), 100_000_000),
        (usage.day(NOON + DAY), 100_000_000),
    ]
    assert await store.usage.rows(["day"], first=usage.day(midnight)) == rows[1:]
    assert await store.usage.rows(["day"], last=usage.day(NOON)) == rows[:1]


async def test_everything_is_told_apart_and_adds_up(store: Store) -> None:
    records = [
        await ended(store, status, took=took, at=at, model=model, owner=owner, token=made_by, metrics=metrics)
        for at in (NOON, NOON + DAY)
        for model in ("a/b", "a/c")
        for owner, made_by in (("me", "t1"), ("me", "t2"), ("you", "t3"))
        for status, took, metrics in (
            (
                Status.SUCCEEDED,
                0.123457,
                {"input_token_count": 3, "output_token_count": 5.0, "cold_start": 0.5},
            ),
            (Status.FAILED, 7.000001, {}),
            (Status.CANCELED, None, {}),
            (Status.ABORTED, None, {}),
        )
    ]
    whole = await everything(store)
    assert whole == Usage(
        succeeded=12, failed=12, canceled=12, aborted=12, predict_us=micros(*records),
        cold_starts=12, cold_start_us=6_000_000, input_tokens=36, output_tokens=60,
    )  # fmt: skip
    for by in (("day",), ("model", "owner"), ("token",), ("hardware",), KEYS):
        rows = usage.table(await store.usage.rows(by), by, {})
        assert usage.total([row.usage for row in rows], {}).usage == whole
        assert [[getattr(row.usage, key) is None for key in KEYS] for row in rows] == [
            [key not in by for key in KEYS]
        ] * len(rows)
    by_owner = usage.table(await store.usage.rows(["owner"], owner="you"), ["owner"], {})
    assert [(row.usage.owner, row.usage.predictions) for row in by_owner] == [("you", 16)]


async def test_an_end_that_is_refused_is_not_counted(store: Store) -> None:
    record = await ended(store)
    with pytest.raises(Exception, match="cannot become"):
        await store.finish(record.evolve(status=Status.FAILED))
    assert (await everything(store)).predictions == 1


async def test_usage_outlives_the_data_and_the_predictions(store: Store, path: Path) -> None:
    record = await ended(store)
    before = await everything(store)
    assert (await store.remove_data(NOON + 1, 10)).ids == [record.id]
    assert await store.remove_version("v", "a/b") == [record.id]
    assert await store.get(record.id) is None
    await store.close()
    store = await created(path)
    assert await everything(store) == before
    await store.close()


async def test_what_was_there_before_the_step_is_counted_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[dict[str, Any]] = [
        *(
            {"took": 0.1 + n / 3, "at": NOON + n * 30_000, "metrics": {"input_token_count": n}}
            for n in range(5)
        ),
        {"status": Status.CANCELED, "took": None},
        {"status": Status.FAILED, "metrics": {"huge": 2**70}},  # is kept as JSON, not as msgpack
        {"destination": "me/mine"},
    ]
    store = await created(path.with_name("new.db"))
    records = [await ended(store, **{"hardware": "", **kind}) for kind in kinds]
    counted = await store.usage.rows(KEYS)
    await store.close()
    with monkeypatch.context() as earlier:
        earlier.setattr("appliance.store.database.STEPS", STEPS[:7])
        await (await created(path)).close()
    connection = sqlite3.connect(path)
    known = [column[1] for column in connection.execute("PRAGMA table_info(predictions)")][1:]
    assert "token" not in known
    for record in (*records, made()):
        values = rows.prediction_columns(record)
        connection.execute(
            f"INSERT INTO predictions ({', '.join(known)}) VALUES (:{', :'.join(known)})",
            {name: values[name] for name in known},
        )
    connection.commit()
    connection.close()
    for _ in range(2):
        store = await created(path)
        assert await store.usage.rows(KEYS) == counted
        whole = await everything(store)
        assert (whole.predict_us, whole.predictions) == (micros(*records), len(records))
        await store.close()


# -- where the numbers come from


async def test_an_engine_counts_each_prediction_once_whatever_happens(tmp_path: Path) -> None:
    bench = await Bench(tmp_path).start()
    records = [
        await bench.ended(await bench.submit(text="a")),
        await bench.ended(await bench.submit(fail="no")),
    ]
    running = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    await bench.engine.cancel(running.id, "me")
    records.append(await bench.ended(running))
    lost = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    await bench.restart()
    while (await bench.engine.get(lost.id, "me")).attempt < 2:  # it runs again
        await asyncio.sleep(0.005)
    await bench.engine.cancel(lost.id, "me")
    records.append(await bench.ended(lost))
    whole = await everything(bench.store)
    assert (whole.succeeded, whole.failed, whole.canceled) == (1, 1, 2)
    assert whole.predict_us == micros(*records) > 0
    hardware = {row.usage.hardware for row in usage.table(await bench.store.usage.rows(()), ["hardware"], {})}
    assert hardware == {"cpu"}
    await bench.stop()
    await bench.cluster.close()


async def test_what_never_ran_counts_no_time(bench: Bench) -> None:
    running = [await bench.submit(delay=30) for _ in range(2)]
    waiting = await bench.submit()
    for prediction in (waiting, *running):
        await bench.engine.cancel(prediction.id, "me")
    record = await bench.ended(waiting)
    assert "predict_time" not in record.metrics
    never = [row for row in await bench.store.usage.rows(["hardware"]) if row.hardware == ""]
    assert never == [Usage(hardware="", canceled=1)]


async def test_parts_count_for_the_token_that_made_the_whole(bench: Bench) -> None:
    whole = await bench.engine.submit(
        bench.echo, {"delay": 30}, owner="me", token="t1", trace="t", parent=None
    )
    await bench.until(whole, Status.PROCESSING)
    part = await bench.engine.submit(bench.stream, {}, owner="me", parent=whole.id, token="run-x", trace=None)
    await bench.ended(part)
    (row,) = await bench.store.usage.rows(["token", "model"])
    assert (row.token, row.model, row.succeeded, part.trace) == ("t1", "test/stream", 1, "t")
    await bench.engine.cancel(whole.id, "me")


# -- prices


@pytest.mark.parametrize(
    ("hardware", "price"),
    [
        ("cpu", Decimal("0.1")),
        ("gpu-h200", Decimal("0.0015")),
        ("gpu-h200-2x", Decimal("0.003")),
        ("gpu-t4-4x", Decimal(1)),  # has a price of its own
        ("cpu+gpu-h200-2x", Decimal("0.103")),
        ("cpu+gpu-a40", None),
        ("gpu-a40-2x", None),
        ("", None),
    ],
)
def test_a_price_is_that_of_the_hardware(hardware: str, price: Decimal | None) -> None:
    assert usage.price(hardware, {"cpu": 0.1, "gpu-h200": 0.0015, "gpu-t4": 0.5, "gpu-t4-4x": 1.0}) == price


def test_without_a_price_there_is_no_cost() -> None:
    cpu, gpu, never = (
        Usage(day="d", hardware=hardware, succeeded=1, predict_us=us)
        for hardware, us in (("cpu", 3_000_000), ("gpu", 1), ("", 0))
    )

    def cost(rows: list[Usage], prices: dict[str, float]) -> tuple[Decimal | None, int]:
        priced = usage.total(rows, prices)
        return priced.cost, priced.unpriced_us

    assert cost([cpu, gpu, never], {}) == (None, 3_000_001)
    assert cost([cpu, gpu, never], {"cpu": 0.1}) == (Decimal("0.3"), 1)
    assert cost([gpu], {"cpu": 0.1}) == (None, 1)
    assert cost([never], {"cpu": 0.1}) == (Decimal(0), 0)
    assert cost([cpu], {"cpu": 0.0}) == (Decimal(0), 0)


# -- the routes


async def answer(api: Api, **parameters: str) -> dict[str, Any]:
    reply = await api.get("/admin/usage", params=parameters)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_the_api_agrees_with_its_predictions(api: Api) -> None:
    records = [await api.ended(await api.create(text=str(n))) for n in range(3)]
    records.append(await api.ended(await api.create(fail="no")))
    found = await answer(api, by="model,token")
    (row,) = found["rows"]
    total = sum(Decimal(str(record["metrics"]["predict_time"])) for record in records)
    assert Decimal(str(row["predict_time"])) == Decimal(str(found["total"]["predict_time"])) == total
    assert (row["predictions"], row["succeeded"], row["failed"]) == (4, 3, 1)
    assert (row["model"], row["token"], row["token_name"]) == ("test/echo", "first", "first")
    assert (row["cost"], found["currency"], row["unpriced_time"]) == (None, None, row["predict_time"])
    assert "day" not in row


async def test_who_may_see_what(api: Api, bench: Bench) -> None:
    for name, scope in (("reader", Scope.READ), ("admin", Scope.ADMIN)):
        await bench.store.add_token(
            Token(id=name, name=name, owner="you", digest=token.digest(name), created_at=0, scope=scope)
        )
    await ended(bench.store, owner="me", token="first")
    await ended(bench.store, owner="you", token="reader")
    days = {"from": usage.day(NOON), "to": usage.day(NOON)}
    async with Api(api.services, "reader") as reader, Api(api.services, "admin") as admin:
        own = await answer(reader, by="owner,token", **days)
        everyone = await answer(admin, by="owner,token", **days)
    assert [(row["owner"], row["token_name"]) for row in own["rows"]] == [("you", "reader")]
    assert own["total"]["predictions"] == 1
    assert {row["owner"] for row in everyone["rows"]} == {"me", "you"}


async def test_costs_and_csv(bench: Bench, api: Api) -> None:
    config = Config.model_validate(
        {
            "models": [{"name": "test/echo", "kind": "echo"}],
            "prices": {"currency": "EUR", "per_second": {"cpu": 0.0001}},
        }
    )
    await ended(bench.store, took=1.5, token="evil", model="a/b")
    await ended(bench.store, took=2.0, model="a/c", hardware="gpu-t4")
    formula = "=HYPERLINK(1)"
    await bench.store.add_token(
        Token(
            id="evil", name=formula, owner="me", digest=token.digest("evil"), created_at=0, scope=Scope.ADMIN
        )
    )
    days = {"from": usage.day(NOON), "to": usage.day(NOON)}
    async with Api(services_of(bench, config)) as priced:
        found = await answer(priced, by="model", **days)
        text = (await priced.get("/admin/usage.csv", params={"by": "model,token", **days})).text
        same = await priced.get(
            "/admin/usage", params={"by": "model,token", **days}, headers={"accept": "text/csv"}
        )
    assert found["currency"] == "EUR"
    assert [row["cost"] for row in found["rows"]] == [0.00015, None]
    assert (found["total"]["cost"], found["total"]["unpriced_time"]) == (0.00015, 2.0)
    assert same.text == text
    assert same.headers["content-type"] == "text/csv; charset=utf-8"
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["model"], line["cost"], line["currency"]) for line in lines] == [
        ("a/b", "0.00015", "EUR"),
        ("a/c", "", ""),
    ]
    assert [line["token_name"] for line in lines] == [f"'{formula}", ""]
    assert lines[0]["predict_time"] == "1.5"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"from": "2026-02-01", "to": "2026-01-01"}, "from"),
        ({"by": "day,colour"}, "by"),
    ],
)
async def test_a_wrong_question_is_told_so(api: Api, parameters: dict[str, str], field: str) -> None:
    reply = await api.get("/admin/usage", params=parameters)
    assert reply.status_code == 422
    assert field in reply.text


async def test_no_key_at_all_is_the_total_and_old_days_can_be_asked_for(api: Api) -> None:
    await api.ended(await api.create())
    found = await answer(api, by=" ", to="9999-12-31", **{"from": "0001-01-01"})
    assert [row["predictions"] for row in found["rows"]] == [1]
    assert (await answer(api, to="0001-01-02"))["rows"] == []


def test_a_model_on_several_devices_has_a_name_for_that() -> None:
    from appliance.machine import Device, joint_sku

    h200 = Device(name="cuda:0", kind="cuda", memory=MIB, label="NVIDIA H200")
    part = Device(name="small", kind="cpu", memory=MIB, label="x", logical=True)
    assert joint_sku((h200.sku,)) == "gpu-h200"
    assert joint_sku((h200.sku, h200.sku)) == "gpu-h200-2x"
    assert joint_sku((part.sku, h200.sku)) == "gpu-h200+small"
