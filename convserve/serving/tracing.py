"""OpenTelemetry traces: a span a request, with its time in the queue and in computing below it.

    inference.GRPCInferenceService/ModelInfer   SERVER, child of the caller's span (traceparent)
    ├── queue
    └── compute

Spans are made after the answer, with the times that were taken on the way: see `observe`. Where
they go, which are kept and how the service is called is said by OpenTelemetry's own environment
variables; OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME are most that one needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import grpc

from convserve.errors import ConfigError
from convserve.serving.observe import Record
from convserve_client import protocol

__all__ = ["Tracing"]

# Of these the semantic conventions say that the server is at fault.
_FAULTS = frozenset(
    getattr(grpc.StatusCode, name)
    for name in (
        "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    )
)  # fmt: skip


class Tracing:
    """Makes spans of records. A sink of `observe.Observer`.

    provider: an OpenTelemetry TracerProvider, which stays the caller's; None makes one as the
    environment says. Raises ConfigError if OpenTelemetry is not installed, or configured wrongly.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise _not_installed("opentelemetry-api") from None
        self._trace, self._extract = trace, propagate.extract
        self.metadata = frozenset(propagate.get_global_textmap().fields)
        self._own = _provider() if provider is None else None
        self._tracer = (self._own or provider).get_tracer("convserve")

    def take(self, records: Sequence[Record]) -> int:
        """A span for each that is sampled; what is lost later is OpenTelemetry's to say."""
        for record in records:
            self._span(record)
        return 0

    def close(self) -> None:
        """Send what is left; the observer does not wait for long."""
        if self._own is not None:
            self._own.shutdown()

    def _span(self, record: Record) -> None:
        carrier = {key: value for key, value in record.metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            protocol.path(record.method)[1:],
            context=self._extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes(record),
            start_time=record.time,
        )
        identity = span.get_span_context()
        record.trace_id = f"{identity.trace_id:032x}" if identity.is_valid else ""
        if not span.is_recording():
            return
        if record.code in _FAULTS:
            span.set_status(self._trace.StatusCode.ERROR, record.details)
        here = self._trace.set_span_in_context(span)
        at = record.time - record.began  # from readings of monotonic_ns to the epoch
        for name, start, end in (
            ("queue", record.queued, record.started),
            ("compute", record.started, record.computed),
        ):
            if start is not None and end is not None:
                part = self._tracer.start_span(name, context=here, start_time=at + start)
                part.end(at + end)
        span.end(at + record.ended)


def _attributes(record: Record) -> dict[str, Any]:
    """Those of the stable conventions for RPC, and beside them two by their names before 2026."""
    kind, _, address = unquote(record.peer).partition(":")
    host, _, port = address.rpartition(":")
    values: dict[str, Any] = {
        "rpc.system.name": "grpc",
        "rpc.system": "grpc",
        "rpc.method": protocol.path(record.method)[1:],
        "rpc.response.status_code": record.code.name,
        "rpc.grpc.status_code": record.code.value[0],
        "error.type": "" if record.code is grpc.StatusCode.OK else record.code.name,
        "convserve.model.name": record.model,
        "convserve.model.version": record.version,
        "convserve.request.id": record.id,
        "convserve.request.images": record.images,
        "convserve.batch.images": record.batch,
    }
    if kind in ("ipv4", "ipv6"):
        values["network.peer.address"] = values["client.address"] = host.strip("[]")
        values["network.peer.port"] = int(port)
    return {name: value for name, value in values.items() if value not in (None, "")}


def _provider() -> Any:
    """A TracerProvider as the environment says; its sampler, resource and limits read that."""
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _not_installed("opentelemetry-sdk") from None
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "convserve"}))
    # Its own handler at exit would wait half a minute for a collector that does not answer.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _exporter()
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter() -> Any:
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() or "otlp"
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    wire = next((os.environ[name] for name in protocols if os.environ.get(name)), "grpc")
    if kind == "none":
        return None
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if kind != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, got {kind!r:.80}")
    if wire == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise _not_installed("opentelemetry-exporter-otlp-proto-grpc") from None
        return OTLPSpanExporter()
    if wire == "http/protobuf":
        try:
            from opentelemetry.exporter.otlp.proto.http import trace_exporter
        except ImportError:
            raise _not_installed("opentelemetry-exporter-otlp-proto-http") from None
        return trace_exporter.OTLPSpanExporter()
    raise ConfigError(
        f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf, got {wire!r:.80}"
    )


def _not_installed(package: str) -> ConfigError:
    return ConfigError(f"--trace needs {package}: pip install 'convserve[otel]'")
