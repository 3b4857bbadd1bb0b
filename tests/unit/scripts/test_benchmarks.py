"""Statistics, reports and hooks of scripts/bench; nothing is measured here."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from appliance import __version__
from appliance.domain.prediction import Job, Output
from appliance.runners.base import LoadSpec
from appliance.runners.echo import runner
from scripts.benchmarks import __main__ as bench
from scripts.benchmarks import (
    environment,
    hooks,
    llm,
    span_recorder,
    spans,
    step_engine,
    stream_reader,
    token_delay,
)
from scripts.benchmarks.span_recorder import POINTS
from scripts.benchmarks.statistic import Spread, quantile, ratios
from scripts.benchmarks.stream_reader import Delays
from tests.support.appliance_process import ROOT


def console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


def test_spread_is_the_median_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert str(Spread(1.004, 0.5, 2.0)) == "1.00 (0.50 to 2.00)"


def test_quantiles_are_measured_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50.0
    assert quantile(values, 0.99) == 99.0
    assert quantile(values, 1.0) == 100.0
    assert quantile([7.0], 0.01) == 7.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_ratios_compare_the_same_round() -> None:
    assert ratios([2.0, 9.0], [4.0, 3.0]) == [0.5, 3.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [])


def test_a_token_arrives_with_its_last_byte() -> None:
    reads = [
        (1000, b"HTTP/1.1 200 OK\r\n\r\n: hi\n\nevent: output\nid: 1:1\nda"),
        (2000, b"ta: 900 \n\n12\r\nevent: output\nid: 1:2\ndata: 950 1900 \n\n"),
        (3000, b"event: output\nid: 1:3\ndata: 2900 \n\n"),
    ]
    assert stream_reader.delays(reads, 0, 10_000) == [1100, 1050, 100, 100]
    assert stream_reader.delays(reads, 950, 2900) == [1050, 100]


def test_delays_are_reported_by_case_in_seconds() -> None:
    to, text = console()
    found = {"2 streams": [Delays([1_000_000, 3_000_000], 2.0, 0), Delays([2_000_000], 1.0, 0)]}
    report = token_delay.report(found, to)
    assert report["seconds"]["2 streams"] == {
        "tokens_per_second": [1.0, 1.0],
        "p50": [0.001, 0.002],
        "p99": [0.003, 0.002],
        "slowest": [0.003, 0.002],
    }
    assert "1.50 (1.00 to 2.00)" in text.getvalue()


@pytest.mark.parametrize("rhythm", [step_engine.TOGETHER, step_engine.SPREAD])
async def test_streams_share_the_moments_of_steps_unless_they_are_spread(rhythm: str) -> None:
    engine = step_engine.Engine(0.001, spread=rhythm == step_engine.SPREAD)
    streams = [engine.add(100), engine.add(100)]
    while any(stream.left for stream in streams):
        await asyncio.sleep(0.001)
    first, second = (stream.emitted for stream in streams)
    assert len(first) == len(second) == 100
    assert bool({*first} & {*second}) == (rhythm == step_engine.TOGETHER)


async def test_a_stream_that_has_ended_gets_no_token() -> None:
    engine = step_engine.Engine(3600.0, spread=False)
    stream = engine.add(1)
    engine._deliver([stream], 5)
    engine._deliver([stream], 6)  # from a thread that still had the old list
    assert stream.emitted == [5]
    assert stream.left == 0


async def test_the_echo_model_emits_the_times_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.EchoRunner, "_texts", runner.EchoRunner._texts)  # restored afterwards
    step_engine.change(runner)
    spec = LoadSpec(
        model="bench/engine", version="0" * 64, kind="echo", options={"stream": True},
        weights=None, device="cpu", memory=0, threads=1, concurrency=1, cache="/tmp",
    )  # fmt: skip
    echo = runner.EchoRunner(spec)
    input = {"text": step_engine.TOGETHER, "chunk_delay": 0.001, "repeat": 2}
    before = time.monotonic_ns()
    texts = [event.values[0] async for event in echo.run(Job("a", 1, input)) if isinstance(event, Output)]
    tokens = [int(token) for token in "".join(texts).split()]
    assert before < tokens[0] < tokens[1] < time.monotonic_ns()
    usual = echo.run(Job("b", 1, {"text": "one two"}))
    assert [event.values async for event in usual if isinstance(event, Output)] == [["one "], ["two"]]


def test_llm_ratios_are_those_of_the_rounds() -> None:
    to, text = console()
    case = llm.Case(4, 64)
    rounds = {
        "appliance": [llm.Round(110.0, 0.2), llm.Round(90.0, 0.1), llm.Round(120.0, 0.3)],
        "vllm": [llm.Round(100.0, 0.1), llm.Round(100.0, 0.1), llm.Round(100.0, 0.1)],
    }
    report = llm.report({llm.QUIET: {case: rounds}}, to)
    found = report["ratios"]["quiet"]["4 x 64 tokens"]
    assert found["tokens_per_second"] == {"median": 1.1, "lowest": 0.9, "highest": 1.2}
    assert found["first_token"]["median"] == pytest.approx(2.0)
    assert report["measured"]["quiet"]["4 x 64 tokens"]["vllm"][0] == {"rate": 100.0, "first_token": 0.1}
    assert "1.10 (0.90 to 1.20)" in text.getvalue()
    json.dumps(report)


def test_spans_are_between_points_in_the_order_of_time() -> None:
    last = len(POINTS) - 1
    records = []
    for begin in (1_000_000, 9_000_000):
        records += [(begin + 1000 * (index + 1), index) for index in range(last)]
        records += [(begin + 50_000, last), (begin + 60_000, last)]  # the last time counts
        records.append((begin + 2_000_000, 0))  # between two predictions
    found = spans.rows([(1_000_000, 1_100_000), (9_000_000, 9_100_000)], sorted(records))
    assert [row.point for row in found] == [
        spans.SENT,
        *(point.name for point in POINTS),
        spans.RECEIVED,
    ]
    assert found[1].at == pytest.approx(1e-6)
    assert found[-2].at == pytest.approx(60e-6)
    assert found[-1].span == pytest.approx(40e-6)


def test_a_point_that_predictions_do_not_pass_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"read from the client's socket.*Connection.data_received"):
        spans.rows([(0, 10)], [])


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_the_product_has_each_point(point: span_recorder.Point) -> None:
    span_recorder.find(importlib.import_module(point.module), point.function)


def test_points_are_recorded_by_every_process(tmp_path: Path) -> None:
    script = (
        "import os\n"
        "from appliance.domain import input_schema\n"
        "from appliance.domain.interface import Interface\n"
        "from appliance.runners import runner_class\n"
        "interface = runner_class('echo').interface({})\n"
        "input_schema.validate(interface, {})\n"
        "if os.fork() == 0:\n"
        "    input_schema.validate(interface, {})\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    variables = hooks.variables(**{hooks.SPANS: str(tmp_path)})
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **variables}, cwd=ROOT, check=True)
    assert len(list(tmp_path.iterdir())) == 2
    names = [POINTS[index].name for _, index in span_recorder.read(tmp_path)]
    assert names == ["input validated"] * 2


def test_without_variables_nothing_is_changed(tmp_path: Path) -> None:
    script = (
        "import sys, scripts.benchmarks.hooks as hooks\n"
        "from appliance.domain import input_schema\n"
        "assert not hasattr(input_schema.validate, '__wrapped__')\n"
        "assert not any(type(each).__module__ == hooks.__name__ for each in sys.meta_path)\n"
    )
    variables = hooks.variables()
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **variables}, cwd=ROOT, check=True)


def test_json_has_machine_versions_and_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def measure(_: Console, rounds: int = 3) -> dict[str, Any]:
        given.append(rounds)
        return {"ratios": {"a": 1.0}}

    monkeypatch.setattr(llm, "measure", measure)
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["bench", "llm", "--rounds", "2", "--json", str(file)])
    assert bench.main() == 0
    capsys.readouterr()
    written = json.loads(file.read_text())
    assert given == [2]
    assert written["llm"] == {"ratios": {"a": 1.0}}
    assert written["machine"]["threads"] >= 1
    assert written["machine"]["memory"] > 0
    assert written["versions"]["appliance"] == __version__
    assert written["versions"]["servers"] == {"litserve": "0.2.19", "bentoml": "1.4.39", "cog": "0.23.1"}
    assert "ray" in written["versions"]["libraries"]


def test_only_installed_distributions_have_versions() -> None:
    assert list(environment.installed(["pytest", "no-such-distribution"])) == ["pytest"]


def test_a_folder_without_git_has_no_commit(tmp_path: Path) -> None:
    assert environment.commit(tmp_path) is None
