"""Adds up the metrics of inference engines, for Prometheus.

Counters are kept by model, so they continue when a model is unloaded, loaded again, or has several instances.
They count since the gateway started.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from appliance.domain.engine_metrics import (
    FIRST_TOKEN_BOUNDS,
    INTER_TOKEN_BOUNDS,
    EngineMetrics,
    Histogram,
)

_PREFIX: Final = "appliance_engine_"
#: Field of ``EngineMetrics`` -> help text.
_COUNTERS: Final = {
    "prompt_tokens": "Prompt tokens that the inference engine has processed.",
    "generation_tokens": "Tokens that the inference engine has generated.",
    "prefix_cache_queries": "Prompt tokens that were looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens that were found in the prefix cache.",
    "preemptions": "Requests that lost their place in the batch because the KV cache was full.",
}
#: Field of ``EngineMetrics`` -> bounds of its buckets, and help text.
_HISTOGRAMS: Final = {
    "time_to_first_token": (
        FIRST_TOKEN_BOUNDS,
        "Time from the arrival of a request at the inference engine to its first token.",
    ),
    "inter_token_latency": (INTER_TOKEN_BOUNDS, "Time between two tokens of one request."),
}


class EngineTotals:
    """The metrics of all inference engines. Use only on the gateway's event loop."""

    def __init__(self, model_name: Callable[[str], str]) -> None:
        """``model_name`` returns the name of the model from a key of the scheduler."""
        self._model_name = model_name
        self._totals: dict[str, EngineMetrics] = {}  # by name of the model
        self._states: dict[str, EngineMetrics] = {}  # by key of the scheduler

    def add(self, key: str, metrics: EngineMetrics) -> None:
        """Add a message of the loaded model with this key."""
        self._totals.setdefault(self._model_name(key), EngineMetrics()).add(metrics)
        self._states[key] = metrics.state()

    def forget_state(self, key: str) -> None:
        """Forget the state of the model with this key, because its worker process has ended."""
        self._states.pop(key, None)

    def families(self) -> list[Metric]:
        """Return the metrics; none if no engine has sent any."""
        if not self._totals:
            return []
        return [*self._gauges(), *self._counters(), *self._histograms()]

    def _gauges(self) -> list[Metric]:
        running = _gauge("running_requests", "Requests in the batch of the inference engine.")
        waiting = _gauge("waiting_requests", "Requests that wait for a place in this batch.")
        usage = _gauge("kv_cache_usage_ratio", "Share of the KV cache in use; the highest of all instances.")
        for model, keys in itertools.groupby(sorted(self._states, key=self._model_name), self._model_name):
            states = [self._states[key] for key in keys]
            running.add_metric([model], sum(each.running for each in states))
            waiting.add_metric([model], sum(each.waiting for each in states))
            usage.add_metric([model], max(each.kv_cache_usage for each in states))
        return [running, waiting, usage]

    def _counters(self) -> Iterable[Metric]:
        for name, text in _COUNTERS.items():
            family = CounterMetricFamily(f"{_PREFIX}{name}", text, labels=("model",))
            for model, total in self._totals.items():
                family.add_metric([model], getattr(total, name))
            yield family

    def _histograms(self) -> Iterable[Metric]:
        for name, (bounds, text) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"{_PREFIX}{name}_seconds", text, labels=("model",))
            for model, total in self._totals.items():
                durations: Histogram = getattr(total, name)
                cumulative = itertools.accumulate(durations.counts)
                names = [*map(str, bounds), "+Inf"]
                family.add_metric([model], [*zip(names, cumulative, strict=True)], durations.sum)
            yield family


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=("model",))
