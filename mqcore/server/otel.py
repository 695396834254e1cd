"""Transactions as spans of OpenTelemetry. Imported when `--trace` asks for it: OpenTelemetry is the extra `[otel]`."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from importlib.metadata import entry_points

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from .. import FAIL
from ..mail import Connection, Gateway, Kind
from ..mail.timeline import Step, Timeline, Tracer, add_tracer, remove_tracer
from ..stats import Call

PATIENCE = 5.0
"""Seconds, at the end, for what is not sent yet."""
SERVICE = "mqcore"
OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
FAILED = (Kind.FAILED, Kind.IN_DOUBT)

Attributes = dict[str, AttributeValue]


class OtelError(Exception):
    """Why spans cannot be sent."""


class SpanTracer(Tracer):
    """Makes spans of about `ratio` of all transactions. Which ones is drawn before anything of OpenTelemetry is called."""

    def __init__(self, ratio: float, tracer: trace.Tracer, protocol: str | None = None) -> None:
        self.ratio = ratio
        self._tracer = tracer
        self._protocol = protocol

    def wants(self, connection: Connection | None, id: str) -> bool:
        return random.random() < self.ratio

    def ended(self, timeline: Timeline) -> None:
        """One span, a child for each hold, an event for each verdict; its times are those of the timeline."""
        begin = _ns(timeline.started)
        kind = SpanKind.INTERNAL if timeline.connection is None else SpanKind.SERVER
        span = self._tracer.start_span("mail transaction", Context(), kind, attributes=self._about(timeline), start_time=begin)
        within = trace.set_span_in_context(span, Context())
        for step in timeline.steps:
            for call in step.trace.calls:
                self._add_call(span, within, step, call)
        if any(verdict.kind in FAILED for verdict in timeline.verdicts):
            span.set_status(Status(StatusCode.ERROR))
        span.end(begin + _ns(timeline.seconds or 0.0))

    def _about(self, timeline: Timeline) -> Attributes:
        """What is a secret, or a mail's content, is not among it; nor are addresses of mail."""
        about: Attributes = {"mqcore.mail.id": timeline.id, "mqcore.steps": len(timeline.steps)}
        if timeline.connection is not None:
            about["tls.established"] = timeline.connection.tls
            if timeline.connection.peer:
                about["client.address"] = about["network.peer.address"] = timeline.connection.peer
            if self._protocol is not None:
                about["network.protocol.name"] = self._protocol
        codes = [event[:3] for event in timeline.events if isinstance(event, str)]
        if codes:
            about["mqcore.reply.code"] = int(codes[-1])
        if timeline.verdicts:
            about["mqcore.verdict"] = timeline.verdicts[0].kind.value
        if timeline.end_reason is not None:
            about["mqcore.end"] = timeline.end_reason
        return about

    def _add_call(self, span: trace.Span, within: Context, step: Step, call: Call) -> None:
        about: Attributes = {"mqcore.plugin": call.plugin, "mqcore.hook": step.hook}
        if call.error is not None:
            about["error.type"] = call.error.partition(":")[0]
        returned = step.trace.started + call.begin + (call.seconds or 0.0)
        end = _ns(returned + (call.held or 0.0))
        span.add_event("mqcore.verdict", {**about, "mqcore.verdict": call.verdict}, end)
        if call.held is not None:
            hold = self._tracer.start_span(f"hold {call.plugin}", within, attributes=about, start_time=_ns(returned))
            if call.verdict == FAIL.name:
                hold.set_status(Status(StatusCode.ERROR))
            hold.end(end)


@contextlib.contextmanager
def traced(gateway: Gateway, provider: trace.TracerProvider, ratio: float) -> Iterator[None]:
    """Within the block, so many transactions of the gateway are spans."""
    protocol = gateway.source.url.partition(":")[0].removesuffix("s")
    tracer = SpanTracer(ratio, provider.get_tracer("mqcore"), protocol if protocol in ("smtp", "lmtp") else None)
    add_tracer(gateway, tracer)
    try:
        yield
    finally:
        remove_tracer(gateway, tracer)


@contextlib.contextmanager
def provided() -> Iterator[trace.TracerProvider]:
    """What makes spans: that of the program, if it has one (`opentelemetry-instrument` gives it one); else one that does what
    the variables OTEL_* say, and has sent what it has when the block ends. Raises OtelError."""
    known = trace.get_tracer_provider()
    if isinstance(known, TracerProvider):
        yield known
        return
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": SERVICE}), shutdown_on_exit=False)
    for name in _exporters():
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    trace.set_tracer_provider(provider)
    try:
        yield provider
    finally:
        provider.force_flush(int(PATIENCE * 1000))
        provider.shutdown()


def _exporters() -> list[str]:
    """The names in OTEL_TRACES_EXPORTER, otlp where it is not set."""
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    return [name for name in names if name not in ("", "none")]


def _exporter(name: str) -> SpanExporter:
    found = name
    if name == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next(filter(None, map(os.environ.get, variables)), "http/protobuf")
        if protocol not in OTLP:
            raise OtelError(f"the protocol for OTLP is {' or '.join(OTLP)}, not {protocol!r}; see {variables[1]}")
        found = OTLP[protocol]
    for entry_point in entry_points(group="opentelemetry_traces_exporter", name=found):
        try:
            exporter: SpanExporter = entry_point.load()()
        except Exception as error:  # it reads variables of its own
            raise OtelError(f"the exporter {name!r} (OTEL_TRACES_EXPORTER): {type(error).__name__}: {error}") from error
        return exporter
    package = f"opentelemetry-exporter-{found.replace('_', '-')}" if found in OTLP.values() else "the package that has it"
    raise OtelError(f"the exporter {name!r} (OTEL_TRACES_EXPORTER) is not installed; install {package}")


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
