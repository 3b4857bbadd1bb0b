"""Send traces of predictions to an OpenTelemetry collector over OTLP/HTTP, if one is configured.

The request that creates a prediction starts a trace, or continues the trace in its header ``traceparent``.
The span of the request contains the span of the prediction, which contains the spans "queued", "load" and
"run". The spans of a child prediction are inside the span "run" of its parent. All spans of a prediction are
created from its record when it ends, so a restart of the gateway loses no spans. Spans contain no inputs,
outputs or errors.
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

#: OpenTelemetry's variables for the URL of the collector; they override models.yaml.
VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FLUSH: Final = 3.0  # seconds to send the last spans


def build(config: TelemetryConfig, environment: Mapping[str, str]) -> Tracing | None:
    """Return a ``Tracing`` for the collector in the environment or the config; None if neither names one."""
    if any(environment.get(name) for name in VARIABLES):
        return Tracing(None, environment)
    if config.otlp_endpoint is None:
        return None
    return Tracing(f"{config.otlp_endpoint}/v1/traces", environment)


class Tracing:
    """Creates spans, on the gateway's event loop. A thread of the OpenTelemetry library sends the spans."""

    def __init__(self, endpoint: str | None, environment: Mapping[str, str]) -> None:
        """``endpoint`` is the URL for traces; None to use the URL in the environment.

        OpenTelemetry's other environment variables apply too: headers, sampler and resource attributes.
        """
        # Imported here because most appliances have no collector and need not load the library.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        class Ids(RandomIdGenerator):
            """Generates random span ids, except for the next span if ``span`` is set."""

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
            shutdown_on_exit=False,  # ``close`` shuts it down
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("appliance", __version__)

    def start_request(self, method: str, route: str, headers: Mapping[str, str]) -> tuple[Span, str]:
        """Start the span of a request that creates a prediction; return it and its traceparent."""
        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return span, carrier["traceparent"]

    def end_request(self, span: Span, status: int | None) -> None:
        """End the span of a request. ``status`` is None if the client disconnected before the response."""
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def trace_prediction(self, record: Prediction) -> None:
        """Create the spans of a prediction if ``record`` is final; otherwise do nothing."""
        if not record.status.terminal or record.completed_at is None:
            return
        ended = record.completed_at
        started = ended if record.started_at is None else record.started_at
        waited = usage.seconds(usage.microseconds(record.metrics.get("cold_start")))
        load = max(record.created_at, started - waited)
        span = self._span(
            f"prediction {record.model}",
            self._parent(record),
            record.created_at,
            span_id(record.id),
            **_attributes(record),
        )
        if record.status is Status.FAILED:
            span.set_status(self._trace.StatusCode.ERROR)
        inside = self._trace.set_span_in_context(span)
        self._span("queued", inside, record.created_at).end(_nanoseconds(load))
        if record.started_at is not None:
            if waited > 0:
                self._span("load", inside, load).end(_nanoseconds(started))
            self._span("run", inside, started, span_id(record.id, "run")).end(_nanoseconds(ended))
        span.end(_nanoseconds(ended))

    def _span(
        self, name: str, parent: Context, begin: float, id: int | None = None, **attributes: Any
    ) -> Span:
        self._ids.span = id
        return self._tracer.start_span(name, parent, attributes=attributes, start_time=_nanoseconds(begin))

    def _parent(self, record: Prediction) -> Context:
        request = self._propagator.extract({"traceparent": record.trace or ""})
        context = self._trace.get_current_span(request).get_span_context()
        if record.parent is None or not context.is_valid:
            return request
        run = self._trace.SpanContext(
            context.trace_id, span_id(record.parent, "run"), is_remote=True, trace_flags=context.trace_flags
        )
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(run))

    async def close(self) -> None:
        """Send the spans not sent yet, for up to 3 seconds."""
        try:
            async with asyncio.timeout(_FLUSH):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            _log.warning("the last traces could not be sent to the collector within %.1f s", _FLUSH)


def span_id(id: str, part: str = "") -> int:
    """Return the 64-bit id of a prediction's span, or of its span "run". The id is never 0."""
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
        "gen_ai.usage.input_tokens": usage.count(record.metrics.get("input_token_count")) or None,
        "gen_ai.usage.output_tokens": usage.count(record.metrics.get("output_token_count")) or None,
    }
    return {name: value for name, value in known.items() if value is not None}
