"""Results of a load test. All durations are in seconds, as the client sees them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, Self

import msgspec

_MAX_ERRORS: Final = 20  # different error messages that are counted each on its own
_MAX_MESSAGE: Final = 200  # characters
_OTHER_ERRORS: Final = "other errors"


class Percentiles(msgspec.Struct, frozen=True):
    """The 50th, 90th and 99th percentile."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Return the percentiles of ``values`` by the nearest rank; None if there are no values."""
        if not values:
            return None
        ordered = sorted(values)
        p50, p90, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99))
        return cls(p50, p90, p99)


class LoadTestResults(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a load test."""

    model: str
    clients: int
    seconds: float  # from the first request to the last response
    warm_up: float | None  # duration of the prediction before the test, which may have loaded the model
    requests: int  # predictions that have ended, and requests that were refused
    succeeded: int
    error_rate: float  # 0 to 1
    requests_per_second: float  # that succeeded
    duration: Percentiles | None  # from the request until the prediction has succeeded
    time_to_first_token: Percentiles | None  # None: the model does not stream its output
    inter_token_latency: Percentiles | None
    output_tokens: int | None  # None: the model does not count tokens
    tokens_per_second: float | None  # of all clients together
    errors: dict[str, int]  # message -> number


class RequestTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction that succeeded."""

    duration: float
    outputs: Sequence[float]  # when each item of the output came, since the request
    tokens: int | None


class Collector:
    """Adds up the predictions of a load test."""

    def __init__(self, model: str, clients: int) -> None:
        self._model = model
        self._clients = clients
        self._durations: list[float] = []
        self._firsts: list[float] = []
        self._gaps: list[float] = []
        self._tokens: int | None = None
        self._errors: Counter[str] = Counter()
        self.warm_up: float | None = None
        self.seconds = 0.0

    def add(self, measured: RequestTiming) -> None:
        self._durations.append(measured.duration)
        outputs = measured.outputs
        if outputs:
            self._firsts.append(outputs[0])
        self._gaps += [later - earlier for earlier, later in itertools.pairwise(outputs)]
        if measured.tokens is not None:
            self._tokens = (self._tokens or 0) + measured.tokens

    def add_error(self, message: str) -> None:
        shown = " ".join(message.split())[:_MAX_MESSAGE]
        known = shown in self._errors or len(self._errors) < _MAX_ERRORS
        self._errors[shown if known else _OTHER_ERRORS] += 1

    def results(self) -> LoadTestResults:
        """Return the results until now."""
        succeeded, failed = len(self._durations), self._errors.total()
        seconds = max(self.seconds, 1e-6)
        streams = bool(self._gaps)
        return LoadTestResults(
            model=self._model,
            clients=self._clients,
            seconds=self.seconds,
            warm_up=self.warm_up,
            requests=succeeded + failed,
            succeeded=succeeded,
            error_rate=failed / (succeeded + failed) if failed else 0.0,
            requests_per_second=succeeded / seconds,
            duration=Percentiles.of(self._durations),
            time_to_first_token=Percentiles.of(self._firsts) if streams else None,
            inter_token_latency=Percentiles.of(self._gaps),
            output_tokens=self._tokens,
            tokens_per_second=None if self._tokens is None else self._tokens / seconds,
            errors=dict(self._errors.most_common()),
        )
