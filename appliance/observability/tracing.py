"""Traces of predictions, sent to an OpenTelemetry collector over OTLP/HTTP where one is configured.

A trace begins with the request that asked for a prediction, or goes on from the ``traceparent`` that came
with it: the request, the prediction, and in that how it was queued, waited for its model, and ran. What a
prediction asks for while it runs is below its run. Spans of a prediction are made when it is over, of what
its record says, so a restart in between takes nothing from them. They hold no inputs, outputs or errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from appliance import __version__
from appliance.config import TelemetryConfig
from appliance.domain import usage
from appliance.domain.prediction import Prediction, Status

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_log = logging.getLogger(__name__)

#: Where the environment may name the collector, as OpenTelemetry specifies; either goes before models.yaml.
VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FLUSH: Final = 3.0  # seconds that the last spans have to get away


def build(config: TelemetryConfig, environment: Mapping[str, str]) -> Tracing | None:
    """Tracing to where the environment or the config says; None where neither does."""
    if any(environment.get(name) for name in VARIABLES):
        return Tracing(None, environment)
    if config.otlp_endpoint is None:
        return None
    return Tracing(f"{config.otlp_endpoint}/v1/traces", environment)


class Tracing:
    """One per gateway; used on its loop. Spans are sent by a thread of the library's."""

    def __init__(self, endpoint: str | None, environment: Mapping[str, str]) -> None:
        """``endpoint`` takes traces; None: the one of the environment.

        OpenTelemetry's other variables count too: headers, sampler, attributes of the resource.
        """
        # Imported where it is used: without a collector nothing of it is loaded.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        class Ids(RandomIdGenerator):
            """Random, but where an id is derived, so that others can refer to a span before it is made."""

            span: int | None = None

            def generate_span_id(self) -> int:
                chosen, self.span = self.span, None
                return super().generate_span_id() if chosen is None else chosen

        self._trace = trace
        self._ids = Ids()
        self._propagator = TraceContextTextMapPropagator()
        named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "appliance"}
        self._provider = TracerProvider(
            id_generator=self._ids,
            resource=Resource.create({**named, "service.version": __version__}),
            shutdown_on_exit=False,  # `close` does
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("appliance", __version__)

    def request(self, method: str, route: str, headers: Mapping[str, str]) -> tuple[Span, str]:
        """Begin the span of a request that asks for a prediction; with the traceparent of what it causes."""
        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return span, carrier["traceparent"]

    def answered(self, span: Span, status: int | None) -> None:
        """The request is over; ``status`` is None if its client has gone before."""
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def observe(self, record: Prediction) -> None:
        """A prediction has become ``record``; when it is over, its spans are made."""
        if not record.status.terminal or record.completed_at is None:
            return
        ended = record.completed_at
        started = ended if record.started_at is None else record.started_at
        waited = usage.seconds(usage.microseconds(record.metrics.get("cold_start")))
        load = max(record.created_at, started - waited)
        whole = self._span(
            f"prediction {record.model}",
            self._above(record),
            record.created_at,
            span_id(record.id),
            **_attributes(record),
        )
        if record.status is Status.FAILED:
            whole.set_status(self._trace.StatusCode.ERROR)
        inside = self._trace.set_span_in_context(whole)
        self._span("queued", inside, record.created_at).end(_nanoseconds(load))
        if record.started_at is not None:
            if waited > 0:
                self._span("load", inside, load).end(_nanoseconds(started))
            self._span("run", inside, started, span_id(record.id, "run")).end(_nanoseconds(ended))
        whole.end(_nanoseconds(ended))

    def _span(
        self, name: str, above: Context, begin: float, id: int | None = None, **attributes: Any
    ) -> Span:
        self._ids.span = id
        return self._tracer.start_span(name, above, attributes=attributes, start_time=_nanoseconds(begin))

    def _above(self, record: Prediction) -> Context:
        """The request that asked for it; of a part, the run of its whole."""
        above = self._propagator.extract({"traceparent": record.trace or ""})
        context = self._trace.get_current_span(above).get_span_context()
        if record.parent is None or not context.is_valid:
            return above
        run = self._trace.SpanContext(
            context.trace_id, span_id(record.parent, "run"), is_remote=True, trace_flags=context.trace_flags
        )
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(run))

    async def close(self) -> None:
        """Send what is left, for a moment."""
        try:
            async with asyncio.timeout(_FLUSH):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            _log.warning("the last traces could not be sent to the collector")


def span_id(id: str, part: str = "") -> int:
    """The id of a prediction's span, or of a part of it: 64 bits, not 0."""
    digest = hashlib.sha256(f"{id} {part}".encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


def _nanoseconds(moment: float) -> int:
    return round(moment * 1_000_000) * 1000


def _attributes(record: Prediction) -> dict[str, Any]:
    known = {
        "appliance.prediction.id": record.id,
        "appliance.prediction.status": record.status.value,
        "appliance.prediction.attempts": record.attempt,
        "appliance.prediction.operation": record.operation,
        "appliance.model": record.model,
        "appliance.version": record.version,
        "appliance.hardware": record.hardware,
        "appliance.parent": record.parent,
        "gen_ai.usage.input_tokens": usage.whole(record.metrics.get("input_token_count")) or None,
        "gen_ai.usage.output_tokens": usage.whole(record.metrics.get("output_token_count")) or None,
    }
    return {name: value for name, value in known.items() if value is not None}
