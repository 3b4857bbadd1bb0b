"""Adds up the measurements that vLLM takes at each step of its engine.

The attributes that are read here are those of vLLM 0.32's ``SchedulerStats`` and ``IterationStats``, which
vLLM does not promise to keep. ``tests/integration/test_vllm.py`` checks them with the installed vLLM.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from appliance.domain.engine_metrics import FIRST_TOKEN_BOUNDS, INTER_TOKEN_BOUNDS, EngineMetrics

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

#: Seconds between reports of the use of the KV cache, while no request starts or ends.
REPORT_INTERVAL: Final = 0.5


class Statistics:
    """The methods of a vLLM stat logger, without its base class, whose import takes seconds."""

    def __init__(self, *_: object, **__: object) -> None:
        self._since = EngineMetrics()  # the previous call of ``take``
        self._state: EngineMetrics | None = None  # as that call returned it, without counts

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        *_: object,
        **__: object,
    ) -> None:
        """Add the measurements of one step. vLLM calls this for each step, so it must be fast.

        Most steps have no ``scheduler_stats``: see ``throttle_scheduler_stats``.
        """
        since = self._since
        if scheduler_stats is not None:
            since.running = scheduler_stats.num_running_reqs
            since.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            since.kv_cache_usage = scheduler_stats.kv_cache_usage
            since.prefix_cache_queries += scheduler_stats.prefix_cache_stats.queries
            since.prefix_cache_hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            since.prompt_tokens += iteration_stats.num_prompt_tokens
            since.generation_tokens += iteration_stats.num_generation_tokens
            since.preemptions += iteration_stats.num_preempted_reqs
            since.time_to_first_token.observe(iteration_stats.time_to_first_tokens_iter, FIRST_TOKEN_BOUNDS)
            since.inter_token_latency.observe(iteration_stats.inter_token_latencies_iter, INTER_TOKEN_BOUNDS)

    def take(self, *, idle: bool) -> EngineMetrics | None:
        """Return the measurements since the previous call; None if nothing has changed.

        The first call returns the state before the first request.

        ``idle`` says that the engine has no request. vLLM reports no step after the last request was aborted.
        """
        taken = self._since
        if idle:
            taken.running, taken.waiting, taken.kv_cache_usage = 0, 0, 0.0
        if taken == self._state:
            return None
        self._state, self._since = taken.state(), taken.state()
        return taken

    def log(self) -> None:
        """Do nothing: the replica sends the measurements to the gateway."""

    def log_engine_initialized(self) -> None:
        """Do nothing, as ``log``."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Do nothing: the scheduler knows which models sleep."""

    def record_admission_rejection(self, reason: str) -> None:
        """Do nothing: the appliance sets no limits of this kind."""


class StatsThrottle:
    """Decides which steps of the engine core report scheduler statistics."""

    def __init__(self) -> None:
        self._requests = (0, 0, 0)  # of the last report
        self._last = 0.0  # time of the last report

    def is_due(self, requests: tuple[int, int, int], lookups: int, now: float) -> bool:
        """Return whether to report the step that ended at ``now``, in seconds of a monotonic clock.

        ``requests`` are the numbers of running, waiting and skipped requests, ``lookups`` the prompt tokens
        that were looked up in the prefix cache since the last report.
        """
        if requests == self._requests and not lookups and now - self._last < REPORT_INTERVAL:
            return False
        self._requests, self._last = requests, now
        return True


def throttle_scheduler_stats() -> None:
    """Make vLLM's engine core send scheduler statistics for few of its steps.

    It sends them only when the requests change, after a prefix cache lookup, or every ``REPORT_INTERVAL``
    seconds. Call it before the engine core is forked.

    Unpatched, an engine core sends a report of 500 bytes with each step, and the worker process decodes it.
    vLLM adds up the lookups in the prefix cache until they are reported.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    scheduler: Any = Scheduler
    if hasattr(scheduler, "appliance_make_stats"):
        return
    scheduler.appliance_make_stats = make_stats = scheduler.make_stats

    def report(self: Any, *arguments: Any, **keywords: Any) -> SchedulerStats | None:
        queue = getattr(self, "deferred_waiting", None)
        lookups = getattr(self.kv_cache_manager, "prefix_cache_stats", None)
        if queue is None or lookups is None:  # another version of vLLM in the environment of a model
            unchanged: SchedulerStats | None = make_stats(self, *arguments, **keywords)
            return unchanged
        throttle: StatsThrottle = self.__dict__.setdefault("appliance_throttle", StatsThrottle())
        requests = (*self.get_request_counts(), len(queue))
        if not throttle.is_due(requests, lookups.queries, time.monotonic()):
            return None
        stats: SchedulerStats | None = make_stats(self, *arguments, **keywords)
        return stats

    scheduler.make_stats = report


def stat_logger() -> type[Statistics]:
    """Return ``Statistics`` as a class that vLLM accepts.

    It is a subclass of ``PrometheusStatLogger``. vLLM would otherwise add one of its own, which would update
    dozens of metrics at each step that nobody reads.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class StatLogger(Statistics, PrometheusStatLogger):  # type: ignore[misc]  # vLLM has no types
        pass

    return StatLogger


def statistics_of(engine: AsyncLLM) -> Statistics:
    """Return the ``Statistics`` of an engine that was started with ``stat_logger()``."""
    manager: Any = engine.logger_manager
    found: Statistics = next(each for each in manager.stat_loggers if isinstance(each, Statistics))
    return found
