"""Every wrong request gets its status and its words, and the server goes on as if nothing were."""

from __future__ import annotations

import time
import tracemalloc

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.engine.repository import ModelRepository
from convserve.errors import InvalidRequestError
from convserve.serving import codec
from convserve_client import protocol

pytestmark = pytest.mark.usefixtures("unharmed")

WAIT = 120.0


@pytest.fixture
def request_(infer_request, images):
    """A good request, for the test to spoil."""
    return infer_request(images[:2])


# Row 1: unknown model or version


def test_unknown_model(refused, request_, stub):
    request_.model_name = "nobody"
    refused(request_, "NOT_FOUND", "Request for unknown model: 'nobody' is not found")
    ready = stub.ModelReady(protocol.ModelReadyRequest(name="nobody"), timeout=WAIT)
    assert not ready.ready


@pytest.mark.parametrize("version", ["1", "3", "999999999999999999"])
def test_unknown_version(refused, request_, stub, version):
    request_.model_version = version
    refused(request_, "NOT_FOUND", "'digits'", f"version {version} is not found")
    ready = protocol.ModelReadyRequest(name="digits", version=version)
    assert not stub.ModelReady(ready, timeout=WAIT).ready


@pytest.mark.parametrize("name", ["", " ", "../digits", "digits/10", "a\0b", "..", "x" * 100_000])
def test_names_that_are_none(refused, request_, name):
    request_.model_name = name
    error = refused(request_, "NOT_FOUND", "Request for unknown model")
    assert len(error.details()) < 500


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
def test_unknown_model_in_other_calls(refused, method):
    make = protocol.METHODS[method].request
    refused(make(name="nobody"), "NOT_FOUND", "'nobody' is not found", method=method)
    refused(make(name="digits", version="x"), "INVALID_ARGUMENT", "'x'", method=method)


# Row 2: a version that is none


@pytest.mark.parametrize("version", ["abc", "-1", "0", "1.0", " 10", "10 ", "１０", "9" * 1000])
def test_version_that_is_no_number(refused, request_, version):
    request_.model_version = version
    refused(request_, "INVALID_ARGUMENT", "model version", "integer > 0")
    refused(
        protocol.ModelReadyRequest(name="digits", version=version),
        "INVALID_ARGUMENT",
        method="ModelReady",
    )


# Row 3: names of inputs


def test_no_input(refused, request_):
    del request_.inputs[:]
    del request_.raw_input_contents[:]
    refused(
        request_,
        "INVALID_ARGUMENT",
        "expected 1 inputs but got 0 inputs for model 'digits'",
        "expected ['input'], got []; missing ['input']",
    )


def test_wrong_name(refused, request_):
    request_.inputs[0].name = "inputs"
    refused(request_, "INVALID_ARGUMENT", "got ['inputs']", "missing ['input']", "unexpected")


def test_extra_input(refused, request_):
    request_.inputs.add(name="more", datatype="FP32", shape=[1])
    request_.raw_input_contents.append(b"1234")
    refused(
        request_, "INVALID_ARGUMENT", "got 2 inputs", "['input', 'more']", "unexpected ['more']"
    )


def test_duplicate_input(refused, request_):
    request_.inputs.append(request_.inputs[0])
    request_.raw_input_contents.append(request_.raw_input_contents[0])
    refused(request_, "INVALID_ARGUMENT", "got 2 inputs", "given more than once ['input']")


def test_ten_thousand_inputs(refused, request_):
    for n in range(10_000):
        request_.inputs.add(name=f"input {n} " + "x" * 100)
    error = refused(request_, "INVALID_ARGUMENT", "got 10001 inputs", "…")
    assert len(error.details()) < 2000


# Row 4: datatype, rank, dims, batch


@pytest.mark.parametrize("datatype", ["FP64", "FP16", "INT8", "BOOL", "fp32", "", "x" * 10_000])
def test_wrong_datatype(refused, request_, datatype):
    request_.inputs[0].datatype = datatype
    refused(request_, "INVALID_ARGUMENT", "unexpected datatype", "['FP32', 'UINT8', 'BYTES']")


def test_a_model_without_preprocessing_takes_no_pixels(refused, infer_request):
    x = np.zeros((1, 3, 8, 8), np.uint8)
    request = infer_request(x, model="plain", name="image")
    refused(request, "INVALID_ARGUMENT", "unexpected datatype 'UINT8'", "expected ['FP32']")


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ([], "[]"),
        ([2], "[2]"),
        ([2, 28, 28], "[2,28,28]"),
        ([2, 1, 28, 28, 1], "[2,1,28,28,1]"),
        ([2, 1, 28, 27], "[2,1,28,27]"),
        ([2, 28, 28, 1], "[2,28,28,1]"),
        ([2, 1, -28, -28], "[2,1,-28,-28]"),
        ([2, 1, 0, 28], "[2,1,0,28]"),
    ],
)
def test_wrong_shape(refused, request_, shape, got):
    request_.inputs[0].shape[:] = shape
    refused(request_, "INVALID_ARGUMENT", "Expected [-1,1,28,28]", f"got {got}")


def test_batch_zero(refused, infer_request, images):
    refused(infer_request(images[:0]), "INVALID_ARGUMENT", "batch-size must be >= 1", "got 0")


def test_batch_above_the_limit(refused, infer_request):
    x = np.zeros((65, 1, 28, 28), np.float32)
    refused(infer_request(x), "INVALID_ARGUMENT", "batch-size must be <= 64 for 'digits', got 65")


# Row 5: bytes and contents


@pytest.mark.parametrize("change", [-1, 1, -4, 4])
def test_byte_count(refused, request_, change):
    size = 2 * 28 * 28 * 4
    request_.raw_input_contents[0] = bytes(size + change)
    words = f"input byte size mismatch for input 'input' for model 'digits'. Expected {size}, "
    refused(request_, "INVALID_ARGUMENT", words + f"got {size + change}")


def test_raw_and_contents(refused, request_):
    request_.inputs[0].contents.fp32_contents.append(1)
    refused(request_, "INVALID_ARGUMENT", "contents field must not be specified")


@pytest.mark.parametrize("count", [2, 3])
def test_raw_count(refused, request_, count):
    request_.raw_input_contents.extend([b"1234"] * (count - 1))
    refused(request_, "INVALID_ARGUMENT", f"Expected 1, got {count}")


def test_neither_raw_nor_contents(refused, request_):
    del request_.raw_input_contents[:]
    refused(request_, "INVALID_ARGUMENT", "expected 1568 elements", "got 0")


@pytest.mark.parametrize("change", [-1, 1])
def test_contents_count(refused, infer_request, images, change):
    request = infer_request(images[:1], raw=False)
    values = list(request.inputs[0].contents.fp32_contents)
    request.inputs[0].contents.fp32_contents[:] = values[:change] if change < 0 else [*values, 0]
    refused(request, "INVALID_ARGUMENT", "expected 784 elements", f"got {784 + change}")


def test_contents_of_another_field(refused, infer_request, images):
    request = infer_request(images[:1], raw=False)
    request.inputs[0].contents.int_contents.append(1)
    refused(request, "INVALID_ARGUMENT", "belong in fp32_contents, got int_contents")


def test_pixel_above_255(refused, infer_request, pixels):
    request = infer_request(pixels[:1], raw=False)
    request.inputs[0].contents.uint_contents[3] = 256
    refused(request, "INVALID_ARGUMENT", "outside UINT8, 0 to 255")


# Row 6: sizes that only a hostile client sends

HOSTILE = [
    [-1, 1, 28, 28],
    [-(2**63), 1, 28, 28],
    [2**62, 1, 28, 28],
    [2**4, 1, 2**60 + 2, 28],
    [1, 2**32, 2**32, 1],
    [1] * 1000,
    [2**40] * 1000,
]


@pytest.mark.parametrize("shape", HOSTILE, ids=lambda s: f"{s[0]}x{len(s)}")
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_hostile_shape(refused, request_, shape, datatype):
    request_.inputs[0].datatype = datatype
    request_.inputs[0].shape[:] = shape
    error = refused(request_, "INVALID_ARGUMENT")
    assert len(error.details()) < 500


@pytest.fixture(scope="module")
def served(repository):
    models = ModelRepository.open(repository)
    yield models.get("digits")
    models.stop(WAIT)


@pytest.mark.parametrize("shape", HOSTILE, ids=lambda s: f"{s[0]}x{len(s)}")
def test_hostile_shape_costs_nothing(served, request_, shape):
    request_.inputs[0].shape[:] = shape

    def read():
        with pytest.raises(InvalidRequestError):
            codec.read_input(served, request_)

    seconds, peaks = [], []
    for _ in range(10):  # the interpreter clears up now and then, and other threads allocate
        began = time.thread_time()
        read()
        seconds.append(time.thread_time() - began)
        tracemalloc.start()
        try:
            read()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(seconds) < 0.01
    assert min(peaks) < 200_000


# Row 9: too large a message


def test_message_above_the_limit(server, infer_request, images, read_answer, digits):
    request = infer_request(images[:1])
    request.inputs[0].contents.bytes_contents.append(bytes(64 * 1024 * 1024))
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(request, timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = server.stub.ModelInfer(infer_request(images[:1]), timeout=WAIT)  # the same channel
    np.testing.assert_array_equal(read_answer(answer)["output"], digits.predict(images[:1]))


def test_message_at_the_limit_is_read(refused, infer_request, images):
    request = infer_request(images[:1])
    request.raw_input_contents[0] = b""
    request.raw_input_contents[0] = bytes(64 * 1024 * 1024 - request.ByteSize() - 4)
    assert request.ByteSize() in range(64 * 1024 * 1024 - 8, 64 * 1024 * 1024 + 1)
    refused(request, "INVALID_ARGUMENT", "input byte size mismatch")


# What asks for outputs


def test_unknown_output(refused, request_):
    request_.outputs.add(name="logits")
    refused(request_, "INVALID_ARGUMENT", "unexpected inference output 'logits'", "['output']")


def test_output_asked_for_twice(refused, request_):
    request_.outputs.add(name="output")
    request_.outputs.add(name="output")
    refused(request_, "INVALID_ARGUMENT", "'output' is requested more than once")


@pytest.mark.parametrize(("choice", "value"), [("string_param", "3"), ("bool_param", True)])
def test_classification_of_a_wrong_type(refused, request_, choice, value):
    output = request_.outputs.add(name="output")
    setattr(output.parameters["classification"], choice, value)
    refused(request_, "INVALID_ARGUMENT", "'classification'", "expected int64_param", choice)


def test_negative_classification(refused, request_):
    request_.outputs.add(name="output").parameters["classification"].int64_param = -1
    refused(request_, "INVALID_ARGUMENT", "'classification'", ">= 0, got -1")


def test_shared_memory(refused, request_):
    request_.inputs[0].parameters["shared_memory_region"].string_param = "region"
    refused(request_, "INVALID_ARGUMENT", "shared memory is not enabled")
    del request_.inputs[0].parameters["shared_memory_region"]
    output = request_.outputs.add(name="output")
    output.parameters["shared_memory_region"].string_param = "region"
    refused(request_, "INVALID_ARGUMENT", "shared memory is not enabled")


# What is no message at all


@pytest.mark.parametrize("method", [*protocol.METHODS])
@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 500],
    ids=["bits", "length", "depth"],
)
def test_garbage(server, method, garbage):
    path = protocol.path(method)
    if protocol.METHODS[method].client_streaming:
        call = server.channel.stream_stream(path)
        (answer,) = call(iter([garbage]), timeout=WAIT)
        message = protocol.ModelStreamInferResponse.FromString(answer).error_message
        assert message == "the request is not a valid ModelInferRequest message"
        return
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary(path)(garbage, timeout=WAIT)
    assert caught.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    )
    assert caught.value.details()


def test_text_that_is_no_utf8(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary(protocol.path("ModelInfer"))(b"\x0a\x02\xff\xfe", timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid ModelInferRequest message" in caught.value.details()


@settings(max_examples=60)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_make_an_unknown_fault(server, data):
    call = server.channel.unary_unary(protocol.path("ModelInfer"))
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=WAIT)
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


@settings(max_examples=100)
@given(data=st.data())
def test_a_spoiled_request_is_answered_or_refused(server, data, images, infer_request, digits):
    good = infer_request(images[:1]).SerializeToString()
    spoiled = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        spoiled[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    try:
        server.channel.unary_unary(protocol.path("ModelInfer"))(bytes(spoiled), timeout=WAIT)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


# Row 7: NaN and Inf are values like others


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_rows_leave_their_neighbours_alone(
    stub, infer_request, read_answer, images, digits, value
):
    x = images[:5].copy()
    x[2, 0, 3, 4] = value
    scores = read_answer(stub.ModelInfer(infer_request(x), timeout=WAIT))["output"]
    np.testing.assert_array_equal(scores, digits.predict(x))
    for row in (0, 1, 3, 4):
        np.testing.assert_array_equal(scores[row], digits.predict(images[row : row + 1])[0])


def test_a_wrong_request_beside_good_ones(server, infer_request, read_answer, images, digits):
    good = [server.stub.ModelInfer.future(infer_request(images[n : n + 1])) for n in range(8)]
    bad_request = infer_request(images[:2])
    bad_request.raw_input_contents[0] += b"\0"
    bad = [server.stub.ModelInfer.future(bad_request) for _ in range(8)]
    for n, call in enumerate(good):
        answer = read_answer(call.result(WAIT))["output"]
        np.testing.assert_array_equal(answer, digits.predict(images[n : n + 1]))
    for call in bad:
        assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
