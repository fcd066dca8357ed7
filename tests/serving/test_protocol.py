"""What the server says about itself and its models, and its good answers in every form."""

from __future__ import annotations

import json
import threading

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import convserve
from convserve_client import protocol

WAIT = 120.0


def test_server_metadata(stub):
    answer = stub.ServerMetadata(protocol.ServerMetadataRequest(), timeout=WAIT)
    assert (answer.name, answer.version) == ("convserve", convserve.__version__)
    assert list(answer.extensions) == [
        "classification",
        "model_repository",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "logging",
    ]


def test_model_metadata(stub):
    answer = stub.ModelMetadata(protocol.ModelMetadataRequest(name="digits"), timeout=WAIT)
    assert (answer.name, list(answer.versions), answer.platform) == ("digits", ["10"], "convserve")
    assert [(t.name, t.datatype, list(t.shape)) for t in answer.inputs] == [
        ("input", "FP32", [-1, 1, 28, 28])
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in answer.outputs] == [
        ("output", "FP32", [-1, 10])
    ]


def test_metadata_of_several_outputs(stub):
    answer = stub.ModelMetadata(protocol.ModelMetadataRequest(name="plain"), timeout=WAIT)
    assert {t.name: list(t.shape) for t in answer.outputs} == {
        "scores": [-1, 4],
        "features": [-1, 5, 8, 8],
    }


def test_model_config(stub, digits):
    request = protocol.ModelConfigRequest(name="digits", version="10")
    config = stub.ModelConfig(request, timeout=WAIT).config
    assert (config.name, config.platform, config.backend) == ("digits", "convserve", "convserve")
    assert config.max_batch_size == 64
    assert (config.input[0].name, list(config.input[0].dims)) == ("input", [1, 28, 28])
    assert config.input[0].data_type == protocol.DataType.Value("TYPE_FP32")
    assert (config.output[0].name, list(config.output[0].dims)) == ("output", [10])
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 1024
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    parameters = {k: json.loads(v.string_value) for k, v in config.parameters.items()}
    assert parameters == {
        "labels": list(digits.labels),
        "preprocessing": json.loads(json.dumps(digits.preprocessing.to_dict())),
        "input_datatypes": ["FP32", "UINT8", "BYTES"],
        "layer_outputs": False,
        "instance_threads": 0,
    }


def test_config_of_a_model_without_labels_and_preprocessing(stub):
    config = stub.ModelConfig(protocol.ModelConfigRequest(name="plain"), timeout=WAIT).config
    parameters = {k: json.loads(v.string_value) for k, v in config.parameters.items()}
    assert parameters == {
        "input_datatypes": ["FP32"],
        "layer_outputs": False,
        "instance_threads": 0,
    }


def test_repository_index(stub):
    answer = stub.RepositoryIndex(protocol.RepositoryIndexRequest(), timeout=WAIT)
    assert [(m.name, m.version, m.state, m.reason) for m in answer.models] == [
        ("digits", "10", "READY", ""),
        ("plain", "1", "READY", ""),
    ]


def test_model_ready(stub):
    for version in ("", "10", "010"):
        request = protocol.ModelReadyRequest(name="digits", version=version)
        assert stub.ModelReady(request, timeout=WAIT).ready


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_every_numeric_form_gives_the_models_own_bits(
    stub, infer_request, read_answer, images, pixels, digits, kind, raw
):
    x = images if kind == "float32" else pixels
    answer = stub.ModelInfer(infer_request(x, raw=raw, id="ü 7"), timeout=WAIT)
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", "10", "ü 7")
    assert len(answer.raw_output_contents) == 1
    np.testing.assert_array_equal(read_answer(answer)["output"], digits.predict(images))


def test_outputs_by_name(stub, infer_request, read_answer, plain):
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    expected = plain.predict(x)
    for names in ([], ["scores"], ["features"], ["features", "scores"]):
        request = infer_request(x, model="plain", name="image")
        for name in names:
            request.outputs.add(name=name)
        answer = read_answer(stub.ModelInfer(request, timeout=WAIT))
        assert list(answer) == (names or ["scores", "features"])
        for name, values in answer.items():
            np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("k", [1, 3, 10, 99])
def test_classification(stub, infer_request, read_answer, images, digits, k):
    request = infer_request(images[:3])
    request.outputs.add(name="output").parameters["classification"].int64_param = k
    answer = stub.ModelInfer(request, timeout=WAIT)
    assert answer.outputs[0].datatype == "BYTES"
    assert list(answer.outputs[0].shape) == [3, min(k, 10)]
    for row, texts in zip(digits.predict(images[:3]), read_answer(answer)["output"], strict=True):
        order = sorted(range(10), key=lambda i: (-row[i], i))[:k]
        expected = [f"{row[i]:.6f}:{i}:{digits.labels[i]}".encode() for i in order]
        assert texts.tolist() == expected


def test_classification_zero_means_none(stub, infer_request, read_answer, images, digits):
    request = infer_request(images[:1])
    request.outputs.add(name="output").parameters["classification"].int64_param = 0
    answer = read_answer(stub.ModelInfer(request, timeout=WAIT))
    np.testing.assert_array_equal(answer["output"], digits.predict(images[:1]))


def test_parameters_that_mean_nothing_here_are_tolerated(stub, infer_request, images):
    request = infer_request(images[:1])
    request.parameters["priority"].int64_param = 1
    request.parameters["timeout"].int64_param = 1
    request.parameters["anything"].string_param = "goes"
    request.inputs[0].parameters["binary_data"].bool_param = True
    output = request.outputs.add(name="output")
    output.parameters["binary_data"].bool_param = False
    assert len(stub.ModelInfer(request, timeout=WAIT).raw_output_contents) == 1


UNIMPLEMENTED = [
    "TraceSetting",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
]


@pytest.mark.parametrize("method", UNIMPLEMENTED)
def test_other_calls_are_unimplemented_and_say_so(stub, method):
    request = protocol.METHODS[method].request()
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request, timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert method in caught.value.details()


def test_a_call_that_nobody_knows(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# grpc.health.v1


@pytest.fixture
def health(server):
    return health_pb2_grpc.HealthStub(server.channel)


@pytest.mark.parametrize("service", ["", "digits", "plain", protocol.SERVICE])
def test_health(health, service):
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_model(health):
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_watch(health):
    for service, status in [("digits", "SERVING"), ("nobody", "SERVICE_UNKNOWN")]:
        call = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
        assert next(call).status == health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        call.cancel()


def test_health_list(health):
    answer = health.List(health_pb2.HealthListRequest(), timeout=WAIT)
    assert sorted(answer.statuses) == ["", "digits", "inference.GRPCInferenceService", "plain"]
    assert {each.status for each in answer.statuses.values()} == {1}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("grpc.health.v1.Health/Check", "unary_unary"),
        ("grpc.health.v1.Health/List", "unary_unary"),
        ("grpc.health.v1.Health/Watch", "unary_stream"),
        ("grpc.health.v1.Health/Nothing", "unary_unary"),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "stream_stream"),
        ("grpc.reflection.v1alpha.ServerReflection/Nothing", "stream_stream"),
    ],
)
def test_bytes_that_are_no_message_leave_nothing_in_the_log(server, method, kind):
    before = server.log
    data, streams = b"\xff\xff", kind.startswith("stream")
    with pytest.raises(grpc.RpcError) as caught:
        answer = getattr(server.channel, kind)(f"/{method}")(
            iter([data]) if streams else data, timeout=WAIT
        )
        if kind != "unary_unary":
            list(answer)
    wanted = "UNIMPLEMENTED" if "Nothing" in method else "INTERNAL"
    assert caught.value.code().name == wanted
    assert server.log == before


# Reflection


@pytest.fixture(params=["v1", "v1alpha"])
def reflect(server, request):
    """Ask in either version; their messages are the same bytes."""
    call = server.channel.stream_stream(
        f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**what):
        message = reflection_pb2.ServerReflectionRequest(**what)
        (answer,) = call(iter([message]), timeout=WAIT)
        return answer

    return ask


SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
]


def test_reflection_lists_the_services(reflect):
    services = reflect(list_services="").list_services_response.service
    assert [service.name for service in services] == SERVICES


@pytest.mark.parametrize("symbol", [*SERVICES, "inference.ModelInferRequest", "inference.DataType"])
def test_reflection_finds_files(reflect, symbol):
    answer = reflect(file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    package, _, name = symbol.rpartition(".")
    assert any(
        file.package == package
        and name in [t.name for t in (*file.service, *file.message_type, *file.enum_type)]
        for file in files
    )
    again = reflect(file_by_filename=files[0].name)
    assert again.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize(
    "method", ["inference.GRPCInferenceService.ModelInfer", "grpc.health.v1.Health.Check"]
)
def test_reflection_finds_the_file_of_a_method(reflect, method):
    """`grpcurl describe` of a method asks so."""
    files = reflect(file_containing_symbol=method).file_descriptor_response.file_descriptor_proto
    service = reflect(file_containing_symbol=method.rpartition(".")[0]).file_descriptor_response
    assert list(files) == list(service.file_descriptor_proto) != []


def test_reflection_of_what_is_not_there(reflect):
    nowhere = ["no.Such", "", ".", "inference.GRPCInferenceService.No", "inference.", "a..b"]
    symbols = [{"file_containing_symbol": symbol} for symbol in nowhere]
    for what in (*symbols, {"file_by_filename": "no/such.proto"}):
        assert reflect(**what).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_open_reflection_streams_do_not_block_other_calls(server, stub):
    done = threading.Event()

    def silence():
        done.wait(WAIT)
        yield from ()

    reflection = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    calls = [reflection.ServerReflectionInfo(silence()) for _ in range(30)]
    try:
        assert stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT).live
    finally:
        done.set()
        for call in calls:
            call.cancel()
