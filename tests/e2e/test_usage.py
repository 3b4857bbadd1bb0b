"""A load run, and then all that the whole run has made: metrics, usage and the predictions agree."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.clients import LANGUAGE_MODEL
from tests.e2e.conftest import command
from tests.support.appliance_process import TOKEN, Appliance, wait_for
from tests.support.trace_collector import Collector, attributes
from tests.support.usage_totals import ENDS, EVER, all_predictions, is_quiet, microseconds, summed, used

pytestmark = pytest.mark.e2e

#: What is asked for at once, by several clients: most succeed, some fail, some never run.
LOAD: list[tuple[str, dict[str, Any]]] = [
    *[("test/stream", {"text": "a b c ", "repeat": 3})] * 20,
    *[("appliance/echo", {"text": "x", "delay": 0.02})] * 20,
    *[("appliance/echo", {"fail": "it should"})] * 5,
    *[("appliance/all-minilm-l6-v2", {"texts": "one text"})] * 2,
    *[(LANGUAGE_MODEL, {"prompt": "Say something.", "max_tokens": 4})] * 3,
]


def load(client: httpx.Client) -> list[str]:
    """The ids of what was made."""

    def ask(each: tuple[str, dict[str, Any]]) -> str:
        model, input = each
        return str(client.post("/v1/predictions", json={"version": model, "input": input}).json()["id"])

    with ThreadPoolExecutor(4) as clients:
        made = list(clients.map(ask, LOAD))
    slow = [ask(("test/one-at-a-time", {"delay": 600})) for _ in range(3)]
    for id in reversed(slow):  # the first one runs, the others never do
        client.post(f"/v1/predictions/{id}/cancel")
    return made + slow


def measured(client: httpx.Client) -> dict[tuple[str, ...], Counter[str]]:
    """The same by model, as Prometheus gets it."""
    names = {
        "appliance_cold_starts_total": "cold_starts",
        "appliance_input_tokens_total": "input_tokens",
        "appliance_output_tokens_total": "output_tokens",
        "appliance_predict_seconds_total": "predict_time",
        "appliance_cold_start_seconds_total": "cold_start",
    }
    sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            model = (sample.labels.get("model", ""),)
            if sample.name == "appliance_predictions_total":
                sums[model] += Counter(
                    {"predictions": int(sample.value), sample.labels["status"]: int(sample.value)}
                )
            elif sample.name in names:
                seconds = "seconds" in sample.name
                sums[model][names[sample.name]] += round(sample.value * 1e6) if seconds else int(sample.value)
    return {model: +amounts for model, amounts in sums.items()}


@pytest.mark.last
def test_metrics_usage_and_predictions_agree_to_the_unit(
    appliance: Appliance, client: httpx.Client, new_token: Callable[..., str]
) -> None:
    with appliance.client() as loading:
        loading.headers["Authorization"] = f"Bearer {new_token('load', scope='run')}"
        made = load(loading)
        wait_for(lambda: is_quiet(client), "all predictions to be over")
        assert loading.get("/metrics").status_code == 200  # it is of the appliance's own account
    records = all_predictions(client)
    own = [record for record in records if record["id"] in set(made)]
    (token,) = {record["token"] for record in own}
    (mine,) = (amounts for key, amounts in used(client, "token").items() if key == (token,))
    assert mine == summed(own, "token")[token,]
    assert {name: mine[name] for name in ENDS} == {"succeeded": 45, "failed": 5, "canceled": 3, "aborted": 0}
    assert mine["output_tokens"] >= 3

    # Of all that the run has made; predictions that were deleted with their versions are in the usage only.
    kept = {(model["name"],) for model in yaml.safe_load(appliance.config.read_text())["models"]}
    usage, metrics, listed = used(client, "model"), measured(client), summed(records, "model")
    assert {model for model in listed if model in kept} == {model for model in usage if model in kept}
    for model in kept & set(usage):
        assert usage[model] == metrics[model] == listed[model], model
    assert usage == metrics
    keys = ("model", "work", "owner", "token", "hardware")
    apart, each = used(client, *keys), summed(records, *keys)
    assert {key: apart[key] for key in each if key[:1] in kept} == {
        key: amounts for key, amounts in each.items() if key[:1] in kept
    }


@pytest.mark.last
def test_the_command_prints_the_same_numbers(appliance: Appliance, client: httpx.Client) -> None:
    found = client.get("/admin/usage", params={**EVER, "by": "model"}).json()
    printed = csv.DictReader(
        io.StringIO(command(appliance, "usage", "--csv", "--from", EVER["from"], "--to", EVER["to"]))
    )
    rows = {row["model"]: row for row in printed}
    assert {row["model"]: microseconds(row["predict_time"]) for row in found["rows"]} == {
        model: microseconds(float(row["predict_time"])) for model, row in rows.items()
    }


def test_a_probe_is_told_that_it_is_ready(stranger: httpx.Client) -> None:
    def ready() -> Any:  # it may be busy just now
        reply = stranger.get("/readyz")
        return reply.status_code == 200 and reply.json()

    assert wait_for(ready, "it to be ready") == {"status": "ready"}


def test_metrics_want_a_token_that_may_read(
    appliance: Appliance, stranger: httpx.Client, new_token: Callable[..., str]
) -> None:
    assert stranger.get("/metrics").status_code == 401
    secrets = {
        new_token("prometheus", scope="read"): 200,
        new_token("guest", scope="run", owner="guest"): 403,
    }
    for secret, status in secrets.items():
        reply = stranger.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
        assert reply.status_code == status
    assert TOKEN not in stranger.get("/readyz").text


def test_a_trace_goes_on_from_its_client_to_the_collector(client: httpx.Client, collector: Collector) -> None:
    trace, above = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    body = {"version": "appliance/echo", "input": {"text": "traced"}}
    headers = {"traceparent": f"00-{trace}-{above}-01", "Prefer": "wait"}
    id = client.post("/v1/predictions", json=body, headers=headers).json()["id"]

    def arrived() -> dict[str, Span]:
        spans = {span.name: span for span in collector.spans if span.trace_id.hex() == trace}
        return spans if {"POST /v1/predictions", "prediction appliance/echo"} <= set(spans) else {}

    spans = wait_for(arrived, "the trace")
    request, whole = spans["POST /v1/predictions"], spans["prediction appliance/echo"]
    assert request.parent_span_id.hex() == above
    assert whole.parent_span_id == request.span_id
    assert attributes(whole)["appliance.prediction.id"] == id
    assert {"queued", "run"} <= set(spans)
