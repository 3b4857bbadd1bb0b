"""Traces of predictions, as a collector gets them over HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as Outcome

from appliance.config import TelemetryConfig
from appliance.domain.prediction import Status
from appliance.observability import tracing
from appliance.observability.tracing import Tracing
from tests.support.api_client import Api, services_of
from tests.support.engine_bench import Bench
from tests.support.trace_collector import Collector, attributes

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ABOVE = "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Collector()
    yield running
    running.close()


@pytest.fixture
async def traced(api: Api, bench: Bench, collector: Collector) -> AsyncIterator[Api]:
    """A client of an appliance that sends its traces to ``collector``, once it is closed."""
    bench.tracing = tracing.build(TelemetryConfig(otlp_endpoint=collector.url), {})
    async with Api(services_of(bench)) as client:
        yield client


async def sent(bench: Bench) -> None:
    assert bench.tracing is not None
    await bench.tracing.close()


async def test_a_trace_has_the_request_and_the_prediction(
    traced: Api, bench: Bench, collector: Collector
) -> None:
    record = await traced.ended(await traced.create(text="secret words"))
    await traced.get(f"/v1/predictions/{record['id']}")
    await sent(bench)
    request, whole, queued, load, run = collector.named(
        "POST /v1/models/{owner}/{name}/predictions", "prediction test/echo", "queued", "load", "run"
    )
    assert len(collector.spans) == 5  # looking at it is not traced
    assert {span.trace_id for span in collector.spans} == {request.trace_id}
    assert (request.parent_span_id, whole.parent_span_id) == (b"", request.span_id)
    assert {span.parent_span_id for span in (queued, load, run)} == {whole.span_id}
    assert (request.kind, attributes(request)["http.response.status_code"]) == (Span.SPAN_KIND_SERVER, 201)
    assert attributes(whole)["appliance.prediction.id"] == record["id"]
    assert attributes(whole)["appliance.prediction.status"] == "succeeded"
    times = [whole.start_time_unix_nano, queued.start_time_unix_nano]
    assert len(set(times)) == 1
    assert queued.end_time_unix_nano == load.start_time_unix_nano
    assert load.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano == whole.end_time_unix_nano
    waited = load.end_time_unix_nano - load.start_time_unix_nano
    assert abs(waited - record["metrics"]["cold_start"] * 1e9) < 2000
    assert collector.service == "appliance"
    assert "secret words" not in "".join(map(str, collector.spans))


async def test_the_trace_of_the_client_continues(traced: Api, bench: Bench, collector: Collector) -> None:
    header = {"traceparent": f"00-{TRACE}-{ABOVE}-01"}
    record = await traced.create(header, fail="secret reason")
    await traced.ended(record)
    await sent(bench)
    request, whole = collector.named("POST /v1/models/{owner}/{name}/predictions", "prediction test/echo")
    assert request.trace_id.hex() == whole.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == ABOVE
    assert whole.status.code == Outcome.STATUS_CODE_ERROR
    assert "secret reason" not in "".join(map(str, collector.spans))


async def test_a_trace_that_the_client_does_not_sample_is_not_sampled(
    traced: Api, bench: Bench, collector: Collector
) -> None:
    await traced.ended(await traced.create({"traceparent": f"00-{TRACE}-{ABOVE}-00"}))
    await sent(bench)
    assert collector.spans == []


async def test_a_refused_request_is_a_trace_without_prediction(
    traced: Api, bench: Bench, collector: Collector
) -> None:
    await traced.post("/v1/models/test/echo/predictions", json={"input": {"repeat": "often"}})
    await sent(bench)
    (request,) = collector.spans
    assert attributes(request)["http.response.status_code"] == 422


async def test_a_restart_loses_no_spans(traced: Api, bench: Bench, collector: Collector) -> None:
    record = await traced.create({"traceparent": f"00-{TRACE}-{ABOVE}-01"}, delay=0.05)
    await bench.restart()
    await bench.engine.wait(record["id"], 5)
    await sent(bench)
    request, whole, run = collector.named(
        "POST /v1/models/{owner}/{name}/predictions", "prediction test/echo", "run"
    )
    assert whole.parent_span_id == request.span_id
    assert run.parent_span_id == whole.span_id


async def test_children_are_in_the_run_of_their_parent(
    traced: Api, bench: Bench, collector: Collector
) -> None:
    record = await traced.create(delay=30)
    whole = await bench.engine.get(record["id"], "me")
    await bench.until(whole, Status.PROCESSING)
    secret = bench.run_tokens.make(whole.id, 1)
    async with Api(traced.services, secret) as program:
        reply = await program.post("/v1/models/test/stream/predictions", json={"input": {"text": "a"}})
    await bench.engine.wait(reply.json()["id"], 5)
    await bench.engine.cancel(whole.id, "me")
    await sent(bench)
    upper, part = collector.named("prediction test/echo", "prediction test/stream")
    (run,) = [span for span in collector.spans if span.name == "run" and span.parent_span_id == upper.span_id]
    assert part.trace_id == upper.trace_id
    assert part.parent_span_id == run.span_id


def test_the_environment_overrides_the_config(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    made = tracing.build(
        TelemetryConfig(otlp_endpoint="http://192.0.2.1"), {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    )
    assert isinstance(made, Tracing)
    span, _ = made.start_request("POST", "/x", {})
    made.end_request(span, None)
    made._provider.shutdown()
    (request,) = collector.spans
    assert request.status.code == Outcome.STATUS_CODE_ERROR


def test_the_library_is_not_loaded_without_a_collector(tmp_path: Path) -> None:
    program = """
import sys
from appliance.observability import tracing
from appliance.config import TelemetryConfig
assert tracing.build(TelemetryConfig(), {}) is None
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=240)
