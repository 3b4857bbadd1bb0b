"""The appliance's metrics for Prometheus.

Totals of predictions come from the usage in the store, read at each scrape, so they survive restarts and
equal those of ``/admin/usage``. The current state (queues, models, memory) is read from the scheduler at each
scrape. Only histograms, requests and decisions are counted here, from the start of the gateway. Labels have
few values, and no client can invent one.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from appliance import __version__
from appliance.domain import usage
from appliance.domain.prediction import Prediction, Status
from appliance.domain.usage import Usage
from appliance.scheduler import Event, EventKind, Residency, Scheduler

#: The grouping of the usage that ``Metrics.page`` takes.
USAGE_BY: Final = ("model",)
#: HTTP methods with a label of their own; clients may send any method.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})
_PREDICTION_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_LOAD_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
#: Separates a model's name from a version or an instance number in the key that it is loaded under.
_INSTANCE: Final = re.compile("[@#]")
#: Patterns of reasons in scheduler events -> the value of the label.
_REASONS: Final = (
    (re.compile(r"pinned"), "pinned"),
    (re.compile(r"\d+ predictions? waiting for"), "waiting"),
    (re.compile(r"asked for"), "asked for"),
    (re.compile(r"idle for"), "idle"),
    (re.compile(r".* was not ready after"), "timeout"),
)


class Metrics:
    """All metrics of one gateway; use it on the gateway's event loop only."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Start all counters at zero; ``scheduler`` is read whenever a page is made."""
        self._scheduler = scheduler
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._queued = self._histogram(
            "appliance_prediction_queue_seconds",
            "From the acceptance of a prediction to its first run, loads of its model included.",
            ("model",),
            _PREDICTION_SECONDS,
        )
        self._predicted = self._histogram(
            "appliance_prediction_duration_seconds",
            "metrics.predict_time of predictions that ran.",
            ("model",),
            _PREDICTION_SECONDS,
        )
        self._loaded = self._histogram(
            "appliance_model_load_seconds", "How long loads took that succeeded.", ("model",), _LOAD_SECONDS
        )
        self._woken = self._histogram(
            "appliance_model_wake_seconds", "How long models took to wake.", ("model",), _LOAD_SECONDS
        )
        self._answered = self._histogram(
            "appliance_http_request_duration_seconds",
            "Until an answer was complete, waits and streams included.",
            ("route",),
            _REQUEST_SECONDS,
        )
        self._requests = Counter(
            "appliance_http_requests",
            "Requests by the route that answered, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._decisions = Counter(
            "appliance_residency_events",
            "Decisions about memory, and what came of them: load, ready, failed, unload, lost and others.",
            ("what", "model", "reason"),
            registry=self._registry,
        )

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def observe(self, record: Prediction) -> None:
        """Count a prediction that has changed to ``record``."""
        if record.status.terminal:
            if "predict_time" in record.metrics:
                took = usage.seconds(usage.microseconds(record.metrics["predict_time"]))
                self._predicted.labels(record.model).observe(took)
        elif record.n == 0 and record.attempt == 1 and record.started_at is not None:
            self._queued.labels(record.model).observe(max(0.0, record.started_at - record.created_at))

    def happened(self, event: Event) -> None:
        """Count an event of the scheduler."""
        model = named(event.model)
        self._decisions.labels(event.kind.value, model, reason(event)).inc()
        took = {EventKind.READY: self._loaded, EventKind.WOKEN: self._woken}.get(event.kind)
        if took is not None and event.seconds is not None:
            took.labels(model).observe(event.seconds)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is the template of its path, ``seconds`` its whole duration."""
        known = method if method in _METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._answered.labels(route).observe(seconds)

    def page(
        self, accept: str, used: Iterable[Usage], webhooks: Mapping[str, int]
    ) -> Callable[[], tuple[bytes, str]]:
        """Collect the current values; return a function that encodes them, in any thread.

        The function returns the page and its content type. ``accept`` is the header of that name, ``used``
        the usage grouped by ``USAGE_BY``, ``webhooks`` the number of attempts by outcome.
        """
        sent = CounterMetricFamily(
            "appliance_webhooks", "Attempts to send a webhook, by what came of them.", labels=["outcome"]
        )
        for outcome, count in webhooks.items():
            sent.add_metric([outcome], count)
        build = InfoMetricFamily("appliance_build", "What runs here.", {"version": __version__})
        families = [*_of_usage(used), *_of_scheduler(self._scheduler), sent, build]
        encode, content_type = choose_encoder(accept)
        page = _Page(self._registry, families)
        return lambda: (encode(page), content_type)


class _Page(Collector):
    """The metrics of one scrape."""

    def __init__(self, registry: CollectorRegistry, families: list[Metric]) -> None:
        self._registry = registry
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._families


def named(key: str) -> str:
    """Return the name of the model in the key of an instance or version, for use as a label."""
    return _INSTANCE.split(key, maxsplit=1)[0]


def reason(event: Event) -> str:
    """Return the label value for the reason of an event: one of a few words."""
    if event.on_behalf_of is not None:
        return "eviction"
    otherwise = "other" if event.reason else ""
    return next((name for pattern, name in _REASONS if pattern.match(event.reason)), otherwise)


def _of_usage(used: Iterable[Usage]) -> list[Metric]:
    predictions = CounterMetricFamily(
        "appliance_predictions", "Predictions and trainings that are over.", labels=["model", "status"]
    )
    seconds = CounterMetricFamily(
        "appliance_predict_seconds", "Sum of their metrics.predict_time.", labels=["model", "hardware"]
    )
    per_model = {
        "cold_starts": ("appliance_cold_starts", "Predictions that waited for a load of their model."),
        "cold_start_us": ("appliance_cold_start_seconds", "How long they waited for that."),
        "input_tokens": ("appliance_input_tokens", "Tokens that language models read."),
        "output_tokens": ("appliance_output_tokens", "Tokens that language models wrote."),
    }
    totals = {name: CounterMetricFamily(*told, labels=["model"]) for name, told in per_model.items()}
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
    queued = GaugeMetricFamily("appliance_queue_depth", "Predictions that wait.", labels=["model"])
    running = GaugeMetricFamily("appliance_running_predictions", "Predictions that run.", labels=["model"])
    state = GaugeMetricFamily(
        "appliance_model_state", "How many of its instances are in this state.", labels=["model", "state"]
    )
    memory = GaugeMetricFamily("appliance_device_memory_bytes", "What models may reserve.", labels=["device"])
    free = GaugeMetricFamily("appliance_device_free_bytes", "What none has reserved.", labels=["device"])
    foreign = GaugeMetricFamily(
        "appliance_device_foreign_bytes", "What other programs take of it.", labels=["device"]
    )
    reserved = GaugeMetricFamily(
        "appliance_device_reserved_bytes", "What is reserved, by whom.", labels=["device", "model"]
    )
    for model, keys in itertools.groupby(sorted(scheduler.models, key=named), named):
        instances = list(keys)
        queued.add_metric([model], sum(map(scheduler.queue_length, instances)))
        running.add_metric([model], sum(len(scheduler.running(key)) for key in instances))
        # A further instance counts only while it is placed; the model itself always counts.
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
            held[named(key)] += amount
        for model, amount in held.items():
            reserved.add_metric([device, model], amount)
    return [queued, running, state, memory, free, foreign, reserved]
