"""The appliance's metrics for Prometheus.

At each scrape, totals of predictions are read from the usage in the store, and the state of queues, models
and memory from the scheduler. So totals survive restarts and equal those of ``/admin/usage``. Histograms,
HTTP requests, the scheduler's decisions and the metrics of inference engines are counted since the gateway
started. Every label has few values, and clients cannot add any.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from appliance import __version__
from appliance.domain import usage
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.prediction import Prediction, Status
from appliance.domain.usage import Usage
from appliance.observability.engine_metrics import EngineTotals
from appliance.observability.history import Sample
from appliance.scheduler import Event, EventKind, Residency, Scheduler

#: Keys by which the usage for ``Metrics.collect`` must be grouped.
USAGE_BY: Final = ("model",)
#: HTTP methods with a label value of their own. Clients may send any method.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})
_PREDICTION_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_LOAD_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
#: Separates the name of a model from a version or an instance number in a key of the scheduler.
_INSTANCE: Final = re.compile("[@#]")
#: Events after which a model has no worker process.
WORKER_ENDED: Final = frozenset({EventKind.UNLOADED, EventKind.LOST})
#: Patterns of reasons in scheduler events, each with its label value.
_REASONS: Final = (
    (re.compile(r"pinned"), "pinned"),
    (re.compile(r"\d+ predictions? waiting for"), "waiting"),
    (re.compile(r"asked for"), "asked for"),
    (re.compile(r"idle for"), "idle"),
    (re.compile(r".* was not ready after"), "timeout"),
)


class MachineState(NamedTuple):
    """What ``Metrics`` cannot read from the scheduler."""

    disk_size: int  # bytes, of the disk with the data folder
    disk_free: int  # bytes
    not_served: Iterable[str]  # models of models.yaml that cannot be served
    sample: Sample | None  # the newest measurements of the GPUs


class Metrics:
    """All metrics of one gateway. Use only on the gateway's event loop."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        since_acceptance = (
            "Time from the creation of a prediction to its first run, including loads of its model."
        )
        self._queued = self._histogram("prediction_queue", since_acceptance, "model", _PREDICTION_SECONDS)
        predict_time = "metrics.predict_time of predictions."
        self._predicted = self._histogram("prediction_duration", predict_time, "model", _PREDICTION_SECONDS)
        self._loaded = self._histogram("model_load", "Duration of successful loads.", "model", _LOAD_SECONDS)
        self._woken = self._histogram("model_wake", "Time that models took to wake.", "model", _LOAD_SECONDS)
        whole_response = "Time until a response was complete, including waits and streams."
        self._responded = self._histogram("http_request_duration", whole_response, "route", _REQUEST_SECONDS)
        self._requests = Counter(
            "appliance_http_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._decisions = Counter(
            "appliance_residency_events",
            "Loads and evictions of models and their results: load, ready, failed, unload, lost and others.",
            ("what", "model", "reason"),
            registry=self._registry,
        )

        self._engines = EngineTotals(model_name)
        # ``labels`` takes a lock and converts all labels. These four are called for each prediction.
        self._queued_of = functools.cache(self._queued.labels)
        self._predicted_of = functools.cache(self._predicted.labels)
        self._responded_of = functools.cache(self._responded.labels)
        self._requests_of = functools.cache(self._requests.labels)

    def _histogram(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"appliance_{name}_seconds", text, (label,), buckets=buckets, registry=self._registry
        )

    def count_prediction(self, record: Prediction) -> None:
        """Count a prediction when it starts or ends; ignore other changes of ``record``."""
        if record.status.terminal:
            if "predict_time" in record.metrics:
                took = usage.seconds(usage.microseconds(record.metrics["predict_time"]))
                self._predicted_of(record.model).observe(took)
        elif record.n == 0 and record.attempt == 1 and record.started_at is not None:
            self._queued_of(record.model).observe(max(0.0, record.started_at - record.created_at))

    def count_engine(self, key: str, metrics: EngineMetrics) -> None:
        """Count a message of the inference engine of the model with this key of the scheduler."""
        self._engines.add(key, metrics)

    def count_event(self, event: Event) -> None:
        if event.kind in WORKER_ENDED:
            self._engines.forget_state(event.model)
        model = model_name(event.model)
        self._decisions.labels(event.kind.value, model, reason(event)).inc()
        took = {EventKind.READY: self._loaded, EventKind.WOKEN: self._woken}.get(event.kind)
        if took is not None and event.seconds is not None:
            took.labels(model).observe(event.seconds)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is the path template, ``seconds`` the time until the response's end."""
        known = method if method in _METHODS else "other"
        self._requests_of(route, known, str(status)).inc()
        self._responded_of(route).observe(seconds)

    def collect(
        self,
        accept: str,
        used: Iterable[Usage],
        webhooks: Mapping[str, int],
        machine: MachineState | None = None,
    ) -> Callable[[], tuple[bytes, str]]:
        """Read the current values, and return a function that encodes them and may run in any thread.

        The function returns the body and the content type of the response. ``accept`` is the request's
        header, ``used`` the usage grouped by ``USAGE_BY``, and ``webhooks`` the number of delivery attempts
        for each outcome. Without ``machine`` there are no metrics of disk, GPUs and models that are not
        served.
        """
        sent = _counter("webhooks", "Attempts to send a webhook, by outcome.", "outcome")
        for outcome, count in webhooks.items():
            sent.add_metric([outcome], count)
        build = InfoMetricFamily("appliance_build", "Version of the appliance.", {"version": __version__})
        engines = self._engines.families()
        families = [*_of_usage(used), *_of_scheduler(self._scheduler), *engines, sent, build]
        if machine is not None:
            families += _of_machine(machine)
        encode, content_type = choose_encoder(accept)
        scrape = _Scrape(self._registry, families)
        return lambda: (encode(scrape), content_type)


class _Scrape(Collector):
    """The metrics of one scrape: counted and read ones."""

    def __init__(self, registry: CollectorRegistry, families: list[Metric]) -> None:
        self._registry = registry
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._families


def model_name(key: str) -> str:
    """Return the model's name from a scheduler key, such as ``owner/name@version`` or ``owner/name#2``."""
    return _INSTANCE.split(key, maxsplit=1)[0]


def reason(event: Event) -> str:
    if event.on_behalf_of is not None:
        return "eviction"
    otherwise = "other" if event.reason else ""
    return next((name for pattern, name in _REASONS if pattern.match(event.reason)), otherwise)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"appliance_{name}", text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"appliance_{name}", text, labels=labels)


def _of_usage(used: Iterable[Usage]) -> list[Metric]:
    predictions = _counter("predictions", "Predictions and trainings that have ended.", "model", "status")
    seconds = _counter("predict_seconds", "Sum of the times that predictions ran.", "model", "hardware")
    totals = {
        "cold_starts": _counter("cold_starts", "Predictions that waited for a load of their model.", "model"),
        "cold_start_us": _counter("cold_start_seconds", "Time waited for these loads.", "model"),
        "input_tokens": _counter("input_tokens", "Input tokens of language models.", "model"),
        "output_tokens": _counter("output_tokens", "Output tokens of language models.", "model"),
    }
    models: dict[str, Usage] = {}
    for row in used:
        name = row.model or ""
        seconds.add_metric([name, row.hardware or ""], usage.seconds(row.predict_us))
        models[name] = models[name] + row if name in models else row
    for name, sum in models.items():
        for status in Status:
            if status.terminal:
                predictions.add_metric([name, status.value], getattr(sum, status.value))
        for amount, family in totals.items():
            value = getattr(sum, amount)
            family.add_metric([name], usage.seconds(value) if amount == "cold_start_us" else value)
    return [predictions, seconds, *totals.values()]


def _of_scheduler(scheduler: Scheduler) -> list[Metric]:
    queued = _gauge("queue_depth", "Predictions in the queue.", "model")
    running = _gauge("running_predictions", "Running predictions.", "model")
    state = _gauge("model_state", "Number of instances of a model in this state.", "model", "state")
    memory = _gauge("device_memory_bytes", "Memory that models may reserve.", "device")
    free = _gauge("device_free_bytes", "Memory that no model has reserved.", "device")
    foreign = _gauge("device_foreign_bytes", "Memory that other programs use.", "device")
    reserved = _gauge("device_reserved_bytes", "Memory that a model has reserved.", "device", "model")
    for model, keys in itertools.groupby(sorted(scheduler.models, key=model_name), model_name):
        instances = list(keys)
        queued.add_metric([model], sum(map(scheduler.queue_length, instances)))
        running.add_metric([model], sum(len(scheduler.running(key)) for key in instances))
        # The first instance always counts; further instances count only while they are on a device.
        states = Counts(
            scheduler.residency(key) for key in instances if key == model or scheduler.devices(key)
        )
        for each in Residency:
            state.add_metric([model, each.value], states[each])
    for device, capacity in scheduler.capacities.items():
        memory.add_metric([device], capacity)
        free.add_metric([device], scheduler.free(device))
        foreign.add_metric([device], scheduler.footprints.foreign_memory(device))
        held: Counts[str] = Counts()
        for key, amount in scheduler.reserved(device).items():
            held[model_name(key)] += amount
        for model, amount in held.items():
            reserved.add_metric([device, model], amount)
    return [queued, running, state, memory, free, foreign, reserved, *_unplaceable(scheduler)]


def _unplaceable(scheduler: Scheduler) -> tuple[Metric, Metric]:
    """Return what an autoscaler of the machines of a cluster needs."""
    predictions = _gauge(
        "unplaceable_predictions", "Waiting predictions of a model that fits on no machine.", "model"
    )
    missing = _gauge(
        "missing_memory_bytes",
        "Memory that the best machine lacks, on each device, for a model that predictions wait for.",
        "model",
    )
    found = scheduler.unplaceable_models(time.monotonic())
    for name, models in itertools.groupby(
        sorted(found, key=lambda each: each.model), lambda each: model_name(each.model)
    ):
        instances = list(models)
        predictions.add_metric([name], sum(each.predictions for each in instances))
        missing.add_metric([name], max(each.missing for each in instances))
    return predictions, missing


def _of_machine(machine: MachineState) -> list[Metric]:
    size = GaugeMetricFamily("appliance_disk_bytes", "Size of the disk with the data folder.")
    size.add_metric([], machine.disk_size)
    free = GaugeMetricFamily("appliance_disk_free_bytes", "Free space on the disk with the data folder.")
    free.add_metric([], machine.disk_free)
    not_served = _gauge("model_not_served", "1 for each model that cannot be served.", "model")
    for model in machine.not_served:
        not_served.add_metric([model], 1)
    shares = _gauge("gpu_utilisation_ratio", "Share of the time in which a GPU computed.", "device")
    power = _gauge("gpu_power_watts", "Power that a GPU draws.", "device")
    heat = _gauge("gpu_temperature_celsius", "Temperature of a GPU.", "device")
    used = _gauge("gpu_memory_used_bytes", "Memory of a GPU that all programs use.", "device")
    sample = machine.sample
    if sample is not None:
        for device, value in sample.utilisation.items():
            shares.add_metric([device], value)
        for device, value in sample.power.items():
            power.add_metric([device], value)
        for device, value in sample.temperature.items():
            heat.add_metric([device], value)
        for device, value in sample.used.items():
            used.add_metric([device], value)
    return [size, free, not_served, shares, power, heat, used]
