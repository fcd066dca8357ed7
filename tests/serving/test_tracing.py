"""OpenTelemetry traces of a real server, into memory and to a collector."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from convserve.errors import ConfigError
from convserve.serving.tracing import Tracing
from convserve_client import protocol

WAIT = 120.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = [("traceparent", f"00-{TRACE}-{PARENT}-01")]


@pytest.fixture
def memory():
    return InMemorySpanExporter()


@pytest.fixture
def provider(memory):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    yield provider
    provider.shutdown()


def test_a_request_is_a_span_with_its_parts(gated, infer_request, images, provider, memory):
    server = gated(sinks=[Tracing(provider)])
    infer = server.stub.ModelInfer
    infer(infer_request(images[:3], id="mine"), metadata=CALLER)
    infer(infer_request(images[:1]))
    with pytest.raises(grpc.RpcError):
        infer(infer_request(images[:1], model="nobody"), metadata=CALLER)
    server.model.fail = True
    with pytest.raises(grpc.RpcError):
        infer(infer_request(images[:1]), metadata=CALLER)
    server.close()  # nothing is left to be observed
    spans = memory.get_finished_spans()
    assert [span.name for span in spans] == [
        "queue", "compute", "inference.GRPCInferenceService/ModelInfer",
        "queue", "compute", "inference.GRPCInferenceService/ModelInfer",
        "inference.GRPCInferenceService/ModelInfer", "inference.GRPCInferenceService/ModelInfer",
    ]  # fmt: skip
    queue, compute, call, *_, own, unknown, broken = spans
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == PARENT and call.parent.is_remote
    assert call.kind is SpanKind.SERVER
    for part in (queue, compute):
        assert part.parent.span_id == call.context.span_id
    assert call.start_time <= queue.start_time <= queue.end_time == compute.start_time
    assert compute.start_time < compute.end_time <= call.end_time
    expected = {
        "rpc.system": "grpc",
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "rpc.grpc.status_code": 0,
        "client.address": "127.0.0.1",
        "convserve.model.name": "digits",
        "convserve.model.version": "10",
        "convserve.request.id": "mine",
        "convserve.request.images": 3,
        "convserve.batch.images": 3,
    }
    assert {name: call.attributes[name] for name in expected} == expected
    assert "error.type" not in call.attributes
    assert own.parent is None and f"{own.context.trace_id:032x}" != TRACE
    assert unknown.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert unknown.status.status_code is StatusCode.UNSET  # the caller's fault
    assert broken.status.status_code is StatusCode.ERROR
    assert broken.attributes["error.type"] == "INTERNAL"
    assert broken.attributes["rpc.grpc.status_code"] == 13


def test_what_is_not_sampled_is_not_made(gated, infer_request, images, memory):
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    server = gated(sinks=[Tracing(provider)])
    server.stub.ModelInfer(infer_request(images[:3]))
    server.close()
    assert not memory.get_finished_spans()


def test_spans_reach_a_collector(
    start_server, digits_path, tmp_path, infer_request, images, monkeypatch
):
    received = []

    def export(request, context):
        received.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    message = trace_service_pb2.ExportTraceServiceRequest
    handler = grpc.unary_unary_rpc_method_handler(
        export, message.FromString, lambda answer: answer.SerializeToString()
    )
    collector = grpc.server(ThreadPoolExecutor(2))
    collector.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"Export": handler}),)
    )
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits-in-test")
    log = tmp_path / "access.log"
    server = start_server(digits_path, "--trace", "--access-log", log)
    server.stub.ModelInfer(infer_request(images[:2], model="model"), metadata=CALLER)
    server.signal()
    assert server.wait() == 0
    collector.stop(None).wait(WAIT)
    spans = [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.name for span in spans} == {"queue", "compute", protocol.path("ModelInfer")[1:]}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    attributes = received[0].resource_spans[0].resource.attributes
    assert {a.key: a.value.string_value for a in attributes}["service.name"] == "digits-in-test"
    assert f"trace_id={TRACE}" in log.read_text()  # the log leads to the trace


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "must be otlp, console or none, got 'zipkin'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "must be grpc or http/protobuf"),
    ],
)
def test_wrong_settings(monkeypatch, name, value, problem):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=problem):
        Tracing()


def test_without_opentelemetry(digits_path):
    code = "import sys; sys.modules['opentelemetry'] = None; from convserve.cli import main; main()"
    ports = ("--port", "0", "--metrics-port", "0", "--log-level", "error")
    result = subprocess.run(
        [sys.executable, "-c", code, "serve", str(digits_path), *ports, "--trace"],
        capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "convserve: error: --trace needs opentelemetry-api: pip install 'convserve[otel]'\n"
    )
