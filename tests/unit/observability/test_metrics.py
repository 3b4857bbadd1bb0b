"""Metrics equal the usage, survive restarts, and have few series."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from appliance import __version__
from appliance.domain import token, usage
from appliance.domain.engine_metrics import FIRST_TOKEN_BOUNDS, EngineMetrics
from appliance.domain.prediction import Status
from appliance.domain.token import Scope, Token
from appliance.observability.history import Sample
from appliance.observability.metrics import Metrics, reason
from appliance.scheduler import Capacity, Demand, Event, EventKind, Residency, Scheduler, Unload
from tests.support.api_client import Api, services_of
from tests.support.engine_bench import Bench

DOCKER = Path(__file__).parents[3] / "docker"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(api: Api) -> Samples:
    """Every sample, by name and labels."""
    reply = await api.get("/metrics")
    assert reply.status_code == 200, reply.text
    families = text_string_to_metric_families(reply.text)
    found = [sample for family in families for sample in family.samples]
    samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(samples) == len(found)  # no series twice
    return samples


def sample(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_totals_equal_the_usage_also_after_a_restart(api: Api, bench: Bench) -> None:
    for created in (api.create(text="a"), api.create(text="b"), api.create(fail="no")):
        await api.ended(await created)
    before = await scraped(api)
    await bench.restart()
    async with Api(services_of(bench)) as restarted:
        await restarted.ended(await restarted.create())
        after = await scraped(restarted)
    (row,) = usage.table(await bench.store.usage.rows(["model"]), ["model"], {})
    assert row.usage.predictions == 4
    assert sample(before, "appliance_predictions_total", model="test/echo", status="succeeded") == 2
    for status in Status:
        if status.terminal:
            counted = sample(after, "appliance_predictions_total", model="test/echo", status=status.value)
            assert counted == getattr(row.usage, status.value)
    took = sample(after, "appliance_predict_seconds_total", model="test/echo", hardware="cpu")
    assert took == usage.seconds(row.usage.predict_us)
    assert sample(after, "appliance_cold_starts_total", model="test/echo") == row.usage.cold_starts
    waited = sample(after, "appliance_cold_start_seconds_total", model="test/echo")
    assert waited == usage.seconds(row.usage.cold_start_us)
    assert sample(after, "appliance_output_tokens_total", model="test/echo") == 0


async def test_histograms_count_from_the_start(api: Api, bench: Bench) -> None:
    await api.ended(await api.create())
    running = [await bench.until(await bench.submit(delay=30), Status.PROCESSING) for _ in range(2)]
    waiting = await bench.submit()
    samples = await scraped(api)
    assert sample(samples, "appliance_queue_depth", model="test/echo") == 1
    assert sample(samples, "appliance_running_predictions", model="test/echo") == 2
    for prediction in (waiting, *running):
        await bench.engine.cancel(prediction.id, "me")
    samples = await scraped(api)
    assert sample(samples, "appliance_prediction_queue_seconds_count", model="test/echo") == 3
    assert sample(samples, "appliance_prediction_duration_seconds_count", model="test/echo") == 3


async def test_memory_and_states(api: Api, bench: Bench) -> None:
    await api.ended(await api.create())
    samples = await scraped(api)
    held = bench.scheduler.reserved("cpu")["test/echo"]
    assert sample(samples, "appliance_device_reserved_bytes", device="cpu", model="test/echo") == held
    whole = sample(samples, "appliance_device_memory_bytes", device="cpu")
    assert whole - sample(samples, "appliance_device_free_bytes", device="cpu") == held
    states = {
        (dict(labels)["model"], dict(labels)["state"]): value
        for (name, labels), value in samples.items()
        if name == "appliance_model_state"
    }
    assert states["test/echo", "ready"] == states["test/big", "cold"] == 1
    assert sum(states.values()) == len(bench.scheduler.models)
    loads = sample(
        samples, "appliance_residency_events_total", what="load", model="test/echo", reason="waiting"
    )
    assert loads == sample(samples, "appliance_model_load_seconds_count", model="test/echo") == 1
    assert sample(samples, "appliance_build_info", version=__version__) == 1


async def test_requests_are_counted_by_templates(api: Api) -> None:
    for path in ("/v1/predictions/one", "/v1/predictions/two", "/nowhere", "/elsewhere"):
        await api.get(path)
    await api.request("MADEUP", "/nowhere")
    await api.delete("/v1/predictions")
    samples = await scraped(api)

    def count(route: str, method: str, status: str) -> float:
        name = "appliance_http_requests_total"
        return sample(samples, name, route=route, method=method, status=status)

    assert count("/v1/predictions/{id}", "GET", "404") == 2
    assert count("unmatched", "GET", "404") == 2
    assert count("unmatched", "other", "404") == 1
    assert count("unmatched", "DELETE", "405") == 1
    assert sample(samples, "appliance_http_request_duration_seconds_count", route="/v1/predictions/{id}") == 2


async def test_both_formats_of_prometheus_are_supported(api: Api) -> None:
    await api.ended(await api.create())
    reply = await api.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics(reply.text)}  # type: ignore[no-untyped-call]  # of a library
    assert {"appliance_predictions", "appliance_queue_depth", "appliance_http_requests"} <= names
    plain = await api.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")


async def test_only_the_account_and_admins_get_metrics(api: Api, bench: Bench) -> None:
    known = {
        ("me", Scope.READ): 200,
        ("you", Scope.READ): 403,
        ("you", Scope.RUN): 403,
        ("you", Scope.ADMIN): 200,
    }
    for number, ((owner, scope), status) in enumerate(known.items()):
        secret = f"secret {number}"
        await bench.store.add_token(
            Token(id=secret, name=secret, owner=owner, digest=token.digest(secret), created_at=0, scope=scope)
        )
        async with Api(api.services, secret) as client:
            assert (await client.get("/metrics")).status_code == status


def happenings() -> Iterator[Event]:
    """What a scheduler tells whose models want one place, one of which cannot be loaded."""
    demands = [
        Demand(model="a/a", concurrency=1, memory=10, preload=True, idle_unload_after=50.0),
        Demand(model="a/b", concurrency=1, memory=10),
    ]
    subject = Scheduler([Capacity("gpu", 10)], demands)
    subject.decide(0.0)
    subject.loaded("a/a", 1.0, ())
    subject.queued("p", "a/b", 10.0)
    assert subject.decide(20.0) == [Unload("a/a", subject.events()[-1].reason, ("gpu",), 0)]
    subject.unloaded("a/a", 21.0)
    subject.decide(22.0)
    subject.load_failed("a/b", 23.0, "model a/b was not ready after 1 s")
    subject.request_load("a/a")
    subject.decide(24.0)
    subject.loaded("a/a", 25.0, ())
    subject.decide(200.0)
    subject.lost("a/a", 201.0, "its worker process died of a very special reason")
    yield from subject.events()


def test_reasons_have_few_values() -> None:
    told = [(each.kind, reason(each)) for each in happenings()]
    assert told == [
        (EventKind.LOAD, "asked for"),
        (EventKind.READY, ""),
        (EventKind.UNLOAD, "eviction"),
        (EventKind.UNLOADED, ""),
        (EventKind.LOAD, "waiting"),
        (EventKind.FAILED, "timeout"),
        (EventKind.LOAD, "asked for"),
        (EventKind.READY, ""),
        (EventKind.UNLOAD, "idle"),
        (EventKind.LOST, "other"),
    ]


async def test_the_dashboard_uses_existing_metrics(api: Api, bench: Bench) -> None:
    await api.ended(await api.create())
    bench.metrics.count_engine("test/echo", EngineMetrics())
    names = {name for name, _ in await scraped(api)}
    dashboard = json.loads((DOCKER.parent / "appliance/assets/monitoring/dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [
        variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable
    ]
    asked = {name for each in expressions for name in re.findall(r"(?:appliance|process)_\w+", each)}
    assert len(asked) > 15
    # No model has slept here; a histogram has no series before its first value.
    assert asked - names == {"appliance_model_wake_seconds_bucket"}


def test_instances_and_versions_are_one_model() -> None:
    keys = ["a/a", "a/a#2", "a/a@1", "a/a@2", "a/a:training", "a/b"]
    subject = Scheduler([Capacity("gpu", 100)], [Demand(model=key, concurrency=1, memory=10) for key in keys])
    metrics = Metrics(subject)
    for key in ("a/a#2", "a/a@1"):
        subject.queued(f"for {key}", key, 0.0)
        subject.decide(0.0)
        subject.loaded(key, 1.0, ())
        subject.decide(1.0)
    for happening in subject.events():
        metrics.count_event(happening)
    lines = metrics.collect("", [], {})()[0].decode().splitlines()
    for line in (
        'appliance_model_state{model="a/a",state="ready"} 2.0',
        'appliance_model_state{model="a/a",state="cold"} 1.0',
        'appliance_model_state{model="a/a:training",state="cold"} 1.0',
        'appliance_running_predictions{model="a/a"} 2.0',
        'appliance_device_reserved_bytes{device="gpu",model="a/a"} 20.0',
        'appliance_residency_events_total{model="a/a",reason="waiting",what="load"} 2.0',
        'appliance_model_load_seconds_count{model="a/a"} 2.0',
    ):
        assert line in lines
    assert not [line for line in lines if "#2" in line or "@" in line]


def test_models_that_fit_on_no_machine() -> None:
    gib = 2**30
    scheduler = Scheduler(
        [Capacity("one/cpu", 4 * gib, node="one"), Capacity("two/cpu", 2 * gib, node="two")],
        [
            Demand(model="a/large", concurrency=1, memory=3 * gib),
            Demand(model="a/small", concurrency=1, memory=gib),
        ],
    )
    for number, model in enumerate(("a/large", "a/large", "a/small")):
        scheduler.queued(str(number), model, 0.0)
    before = Metrics(scheduler).collect("", [], {})()[0].decode()
    assert "appliance_unplaceable_predictions{" not in before
    scheduler.remove_devices("one")
    samples = {
        (sample.name, sample.labels.get("model")): sample.value
        for family in text_string_to_metric_families(Metrics(scheduler).collect("", [], {})()[0].decode())
        for sample in family.samples
    }
    assert samples["appliance_unplaceable_predictions", "a/large"] == 2
    assert samples["appliance_missing_memory_bytes", "a/large"] == gib
    assert ("appliance_unplaceable_predictions", "a/small") not in samples


async def test_gpus_disk_and_models_that_are_not_served(api: Api, bench: Bench) -> None:
    found = {name for name, _ in await scraped(api)}
    assert "appliance_gpu_power_watts" not in found
    assert {"appliance_disk_bytes", "appliance_disk_free_bytes"} <= found
    bench.sampler.history.add(
        Sample(
            at=1.0,
            utilisation={"cuda:0": 0.25},
            power={"cuda:0": 310.5},
            temperature={"cuda:0": 64.0},
            used={"cuda:0": 30},
        )
    )
    api.services.reload.left_out["a/bad"] = "its weights are damaged"
    lines = (await api.get("/metrics")).text.splitlines()
    for line in (
        'appliance_gpu_utilisation_ratio{device="cuda:0"} 0.25',
        'appliance_gpu_power_watts{device="cuda:0"} 310.5',
        'appliance_gpu_temperature_celsius{device="cuda:0"} 64.0',
        'appliance_gpu_memory_used_bytes{device="cuda:0"} 30.0',
        'appliance_model_not_served{model="a/bad"} 1.0',
    ):
        assert line in lines


def engine_metrics(running: int = 0, usage: float = 0.0, tokens: int = 0) -> EngineMetrics:
    metrics = EngineMetrics(running=running, kv_cache_usage=usage, generation_tokens=tokens)
    metrics.time_to_first_token.observe([0.3, 1000.0], FIRST_TOKEN_BOUNDS)
    return metrics


async def test_counters_of_an_engine_do_not_go_back_when_its_model_is_unloaded(
    api: Api, bench: Bench
) -> None:
    assert not [name for name, _ in await scraped(api) if name.startswith("appliance_engine")]
    for _ in range(2):
        await bench.engine.load(bench.echo)
        bench.cluster.measure("test/echo", engine_metrics(running=2, usage=0.5, tokens=7))
        await api.ended(await api.create())  # its events are read after the metrics
        samples = await scraped(api)
        assert sample(samples, "appliance_engine_running_requests", model="test/echo") == 2
        assert sample(samples, "appliance_engine_kv_cache_usage_ratio", model="test/echo") == 0.5
        await bench.engine.unload(bench.echo)
        while bench.engine.residency(bench.echo) is not Residency.COLD:
            await asyncio.sleep(0.005)
    samples = await scraped(api)
    assert sample(samples, "appliance_engine_generation_tokens_total", model="test/echo") == 14
    bucket = "appliance_engine_time_to_first_token_seconds_bucket"
    assert sample(samples, bucket, model="test/echo", le="0.25") == 0
    assert sample(samples, bucket, model="test/echo", le="0.5") == 2
    assert sample(samples, bucket, model="test/echo", le="300.0") == 2
    assert sample(samples, bucket, model="test/echo", le="+Inf") == 4
    assert sample(samples, "appliance_engine_time_to_first_token_seconds_sum", model="test/echo") == 2000.6
    assert not [name for name, _ in samples if name == "appliance_engine_running_requests"]
    history = bench.sampler.sample(bench.engine.status(), 1.0)
    assert history.kv_cache == {"test/echo": 0.5}
    assert bench.sampler.sample(bench.engine.status(), 2.0).kv_cache == {}


def test_the_engines_of_instances_are_one_model() -> None:
    metrics = Metrics(Scheduler([Capacity("gpu", 10)], []))
    metrics.count_engine("a/a", engine_metrics(running=1, usage=0.25, tokens=1))
    metrics.count_engine("a/a#2", engine_metrics(running=2, usage=0.75, tokens=2))
    metrics.count_engine("a/a@1", engine_metrics(running=4, usage=0.5, tokens=4))
    lines = metrics.collect("", [], {})()[0].decode().splitlines()
    for line in (
        'appliance_engine_running_requests{model="a/a"} 7.0',
        'appliance_engine_kv_cache_usage_ratio{model="a/a"} 0.75',
        'appliance_engine_generation_tokens_total{model="a/a"} 7.0',
        'appliance_engine_time_to_first_token_seconds_count{model="a/a"} 6.0',
    ):
        assert line in lines


def test_waking_is_measured() -> None:
    subject = Metrics(Scheduler([Capacity("gpu", 10)], []))
    subject.count_event(
        Event(number=1, at=0, kind=EventKind.WOKEN, model="a/a", devices=("gpu",), memory=1, seconds=0.3)
    )
    page, _ = subject.collect("", [], {})()
    assert 'appliance_model_wake_seconds_bucket{le="0.5",model="a/a"} 1.0' in page.decode()


def test_the_shipped_scrape_sends_a_token() -> None:
    config: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape["authorization"]["type"] == "Bearer"
    assert scrape.get("metrics_path", "/metrics") == "/metrics"
