"""The machine page: its parts, decisions in plain words, alerts, and rights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.machine import Device
from appliance.nodes.messages import NodeFacts
from appliance.observability.history import Sample
from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    Decision,
    HistoryResponse,
    MachineResponse,
    ResidencyResponse,
)
from appliance.ui import alerts, decisions, machine_charts, markup
from appliance.ui.pages import machine
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.node_connection import LocalNode
from tests.support.response_examples import completed
from tests.support.ui_client import Pages
from tests.unit.conftest import api_of
from tests.unit.ui.test_markup import HOSTILE, inert

TIME = "2026-01-02T03:04:05.678900Z"
GIB = 2**30


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


def decision(number: int, what: str, model: str, **more: Any) -> Decision:
    given = {"number": number, "at": TIME, "what": what, "model": model, "text": f"{what} {model}", **more}
    return completed(Decision, given)


def test_a_device_is_a_bar_of_who_holds_it() -> None:
    memory = {"bytes": 2**30, "share": None, "from": "estimated", "exceeds": False, "fits": False}
    model = {
        "name": "a/b", "state": "ready", "queued": 3, "running": 1, "devices": ["gpu"], "pinned": True,
        "memory": memory,
    }  # fmt: skip
    device = {
        "name": "gpu", "label": "A <GPU>", "memory": 8 * 2**30, "free": 4 * 2**30, "foreign": 2**30,
        "reserved": {"a/b": 2 * 2**30, "a/gone": 2**30},
    }  # fmt: skip
    status = completed(ApplianceStatusResponse, {"models": [model], "devices": [device]})
    read = inert(machine.render_devices(status))
    drawn = [each["style"] for tag, each in read.elements if tag == "i" and "style" in each]
    assert drawn == ["width:25.000%", "width:12.500%", "width:12.500%", "width:50.000%"]
    for said in ("a/b 2.0 GiB, ready", "other programs 1.0 GiB", "free 4.0 GiB", "3.0 GiB of 8.0 GiB"):
        assert said in read.said
    row = inert(machine.render_models(status.models, admin=True)).said
    assert "1.0 GiB estimated does not fit" in row
    assert "pinned" in row


async def test_a_part_that_has_not_changed_is_not_sent_again(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = (await browser.get("/machine")).text
        for name in ("models", "decisions", "devices"):
            shown = page.partition(f'<div id="{name}" ')[2].partition('"X-Shown": "')[2].partition('"')[0]
            same = await browser.get(f"/machine/{name}", headers={"HX-Request": "true", "X-Shown": shown})
            assert (same.status_code, same.text) == (204, ""), name
            new = await browser.get(f"/machine/{name}", headers={"HX-Request": "true", "X-Shown": "other"})
            assert new.status_code == 200
            assert f'"X-Shown": "{shown}"' in new.text
        assert (await browser.get("/machine/no-such-part")).status_code == 404


async def test_a_loaded_model_has_buttons_and_its_load_is_a_decision(pages: Pages, bench: Bench) -> None:
    bench.sampler.history.add(Sample(at=1.0))
    await pages.api._http.post("/admin/models/test/echo/load", headers={"Authorization": f"Bearer {SECRET}"})
    async with pages.signed_in(SECRET) as browser:
        page = (await browser.get("/machine")).text
    assert 'id="unload-test/echo"' in page
    assert 'id="load-test/echo"' not in page
    assert "loaded test/echo in " in page
    assert "Memory of cpu" in page


def test_a_load_and_its_evictions_are_one_sentence() -> None:
    told = decisions.sentences(
        [
            decision(6, "ready", "a/x", seconds=4.1),
            decision(5, "load", "a/x"),
            decision(4, "unloaded", "a/y"),
            decision(3, "unload", "a/y", **{"for": "a/x"}, idle=720.0),
            decision(2, "unloaded", "a/z"),
            decision(1, "unload", "a/z", why="idle for 60 s", idle=60.0),
        ]
    )
    assert [each.sentence for each in told] == [
        "loaded a/x in 4.1 s, evicted a/y (idle 12 min 0 s)",
        "unloaded a/z (idle 1 min 0 s)",
    ]
    assert [[event.number for event in each.events] for each in told] == [[3, 4, 5, 6], [1, 2]]


def test_a_load_under_way_and_a_failed_one_are_told() -> None:
    told = decisions.sentences(
        [
            decision(4, "drain", "a/w"),
            decision(3, "failed", "a/y", why="no such file"),
            decision(2, "load", "a/y"),
            decision(1, "load", "a/x", memory=GIB),
        ]
    )
    assert [each.sentence for each in told] == [
        "a/w will unload when its current runs finish",
        "could not load a/y: no such file",
        "loading a/x (1.0 GiB)",
    ]


def test_every_decision_is_in_one_sentence_even_if_the_log_begins_in_between() -> None:
    kinds = ["unloaded", "asleep", "ready", "lost", "starved", "sleep", "asleep", "wake", "woken", "foreign"]
    given = [decision(number, kind, "a/x") for number, kind in enumerate(kinds, 1)][::-1]
    told = decisions.sentences(given)
    assert sorted(event.number for each in told for event in each.events) == [*range(1, len(kinds) + 1)]


def test_alerts_name_what_is_wrong_and_end_when_it_is_well() -> None:
    memory = {"bytes": GIB, "peak": 2 * GIB, "from": "declared"}
    models = [
        {"name": "a/small", "memory": {**memory, "fits": True, "exceeds": True}},
        {"name": "a/big", "memory": {**memory, "fits": False, "problem": "model a/big needs 2.0 GiB."}},
        {"name": "a/bad", "memory": {**memory, "fits": True, "exceeds": False}},
    ]
    left_out = [{"name": "a/b", "problem": "no weights"}]
    status = completed(ApplianceStatusResponse, {"models": models, "not_served": left_out})
    disk = {"folder": "/data", "total": 100 * GIB, "free": GIB, "parts": {}}
    host = completed(MachineResponse, {"disk": disk, "webhooks": {"given_up": 2}})
    failed = decision(1, "failed", "a/bad", why="out of luck\nThe last lines of its log:\nTraceback")
    found = [alert.text for alert in alerts.find(status, host, [failed])]
    for said in (
        "a/b is not served: no weights",
        "Model a/big needs 2.0 GiB.",
        "2 webhooks",
        "nearly full",
        "out of luck",
    ):
        assert any(said in text for text in found), (said, found)
    assert not any("Traceback" in text for text in found)
    assert any("2.0 GiB, which is more than models.yaml declares" in text for text in found)
    well = decision(2, "ready", "a/bad")
    assert not any("out of luck" in alert.text for alert in alerts.find(status, host, [well, failed]))


def lasting(minutes: int, **last: Any) -> list[str]:
    """The alerts after ``minutes`` with the same problems, and ``last`` instead in the newest minute."""

    def values(name: str, value: float) -> list[float]:
        return [value] * minutes + [last.get(name, value)]

    def model(name: str, running: int, tokens: float, kv_cache: float | None) -> dict[str, Any]:
        return {
            "name": name,
            "queued": values("queued", 2),
            "running": values("running", running),
            "tokens_per_second": values("tokens", tokens),
            "kv_cache": None if kv_cache is None else values("kv_cache", kv_cache),
        }

    history = completed(
        HistoryResponse,
        {
            "at": [f"2026-01-02T03:{minute:02}:00Z" for minute in range(minutes + 1)],
            "devices": [
                {"name": "cuda:0", "temperature": values("temperature", 91.0)},
                {"name": "cuda:1", "temperature": values("cooler", 70.0)},
                {"name": "cpu"},
            ],
            "models": [
                model("a/waits", 0, 0.0, None),
                model("a/stuck", 1, 0.0, 0.5),
                model("a/image", 1, 0.0, None),
                model("a/busy", 1, 9.0, 0.5),
            ],
        },
    )
    return [alert.text for alert in alerts.find(completed(ApplianceStatusResponse, {}), history=history)]


def test_problems_that_last_for_minutes_are_alerts() -> None:
    hot = "cuda:0 has been hotter than 85 °C for 5 minutes"
    waits = "Predictions of a/waits have waited for 15 minutes, and none runs"
    stuck = "a/stuck runs predictions, but has generated no token for 15 minutes"
    assert [text.split(":")[0] for text in lasting(4)] == []
    assert [text[: len(hot)] for text in lasting(5)] == [hot]
    found = lasting(15)
    assert [text for text in found if text.startswith((hot, waits, stuck))] == found
    assert len(found) == 3
    assert lasting(15, temperature=80.0, running=1, tokens=2.0) == []


def test_alerts_and_decisions_are_inert() -> None:
    for text in HOSTILE:
        left_out = {"not_served": [{"name": "a/b", "problem": text}]}
        found = alerts.find(completed(ApplianceStatusResponse, left_out))
        assert text in inert(markup.render("alerts.html", alerts=found)).said
        waiting = {"position": 1, "model": text, "queued": 1, "waited": 2.0, "cleared_for_it": [text]}
        residency = completed(ResidencyResponse, {"waiting": [waiting]})
        inert(machine.render_waiting(residency))
        told = decisions.sentences([decision(1, "lost", text, text=text)])
        assert text in inert(markup.render("machine_decisions.html", told=told, waiting="")).said


def test_a_load_shows_how_long_it_will_take() -> None:
    assert machine.remaining(3.0, 10.0) == "about 7.0 s left"
    assert machine.remaining(12.0, 10.0) == "for 12.0 s, longer than the last load"
    assert machine.remaining(3.0, None).startswith("for 3.0 s")


def test_charts_of_the_last_hour_have_a_sentence_and_a_table() -> None:
    history = completed(
        HistoryResponse,
        {
            "seconds": 3600.0,
            "at": ["2026-01-02T03:00:00Z", "2026-01-02T03:04:05Z"],
            "memory": 8 * GIB,
            "available": [4 * GIB, 6 * GIB],
            "devices": [
                {
                    "name": "cuda:0", "memory": 8 * GIB, "reserved": {"a/<b>": [0, GIB]}, "foreign": [0, GIB],
                    "utilisation": [None, 0.5],
                    "power": [None, 310.5],
                    "temperature": [61.0, 64.0],
                }
            ],
            "models": [
                {"name": "a/<b>", "queued": [0, 2], "running": [1, 1], "tokens_per_second": [0.0, 12.5],
                 "kv_cache": [0.0, 0.25]}
            ],
            "loads": [{"at": "2026-01-02T03:04:00Z", "model": "a/<b>", "seconds": 1.0}],
        },
    )  # fmt: skip
    charts = machine_charts.render(history, {"a/<b>": "c3"}, 1767323045.0)
    said = [inert(each) for each in charts]
    labels = [attributes["aria-label"] for read in said for tag, attributes in read.elements if tag == "svg"]
    assert labels == [
        "Memory of cuda:0: now 2.0 GiB of 8.0 GiB, at most 2.0 GiB in the last hour",
        "Predictions: now 1 running, 2 queued",
        "Tokens per second: at most 12.5 tokens/s in the last hour",
        "KV cache in use: now 25 % a/<b>",
        "Loads: 1 in the last hour",
        "Main memory: now 2.0 GiB of 8.0 GiB, at most 4.0 GiB in the last hour",
        "GPU utilisation: now 50 % cuda:0",
        "GPU power: now 310 W cuda:0",
        "GPU temperature: now 64 \N{DEGREE SIGN}C cuda:0",
    ]
    assert "a/<b>" in said[0].said
    drawn = [each["class"] for tag, each in said[0].elements if tag == "path"]
    assert [each for each in drawn if each != "grid"] == ["area c3", "area others"]
    assert all("As a table" in read.said for read in said)


async def test_the_page_shows_the_devices_of_all_nodes(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "head")
    bench.node = "head"
    await bench.start()
    node = LocalNode(tmp_path / "box")
    facts = NodeFacts(
        name="box", host="10.0.0.2", port=8770, version="1", labels={}, threads=7,
        devices=(Device(name="cpu", kind="cpu", memory=GIB, label="A CPU"),),
        run_dir=str(node.folders.run_dir), outputs=str(node.folders.outputs),
    )  # fmt: skip
    bench.engine.nodes.joined(facts, node)  # type: ignore[arg-type]  # it does as much
    bench.sampler.history.add(bench.sampler.sample(bench.engine.status(), 1.0))
    async with api_of(bench) as api:
        pages = Pages(api, tmp_path)
        async with pages.signed_in(SECRET) as browser:
            page = (await browser.get("/machine")).text
        await pages.server.close()
    assert "<h3>head/cpu <" in page
    assert "<h3>box/cpu <" in page
    assert "Memory of box/cpu" in page
    await bench.stop()
    await bench.cluster.close()
