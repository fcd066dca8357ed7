"""A model of several inputs from its file to the wire and back, in the same bits everywhere."""

from __future__ import annotations

from multiprocessing import shared_memory

import grpc
import numpy as np
import pytest
from server_process import WAIT, Stub

import convserve_client
from convserve import model_file
from convserve.engine.model import Model
from convserve.engine.repository import ModelRepository
from convserve.graph import Graph, layers
from convserve.serving.server import Options, Server
from convserve_client import protocol, tensors


def pair_graph() -> Graph:
    """An image and a row to scores and a feature map."""
    graph = Graph((3, 8, 6), input_name="photo")
    graph.add_input("facts:0", (4,))
    features = graph.add(layers.Conv2d(5, 3), "photo", name="features")
    flat = graph.add(layers.Flatten())
    graph.set_output(graph.add(layers.Affine(3), graph.add(layers.Concat(), flat, "facts:0")))
    graph.set_output(features, "map")
    return graph


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    graph = pair_graph()
    path = tmp_path_factory.mktemp("pair") / "pair.npz"
    model_file.save(path, model_file.ModelFile(graph, graph.initialise(4)))
    return path


@pytest.fixture(scope="module")
def model(path):
    return Model.from_file(model_file.load(path), name="pair")


@pytest.fixture(scope="module")
def served(path):
    repository = ModelRepository.open(path, defaults={"max_batch_size": 8})
    server = Server(repository, Options(port=0, metrics_port=0, shared_memory=True))
    yield server
    assert server.stop(WAIT)


def inputs(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((count, *shape)).astype(np.float32)
        for name, shape in pair_graph().inputs.items()
    }


def test_the_client_gets_the_models_own_bits(client, model):
    for count in (0, 1, 8, 19):  # the server's limit is 8
        x = inputs(count)
        expected = model.predict(x)
        for given in (x, dict(reversed(x.items())), list(x.values())):
            answer = client.predict(given)
            assert list(answer) == ["output", "map"]
            for name, value in expected.items():
                np.testing.assert_array_equal(answer[name], value)


def test_metadata_and_config_list_all_inputs(client):
    metadata = client.model_metadata()
    assert [(t.name, list(t.shape)) for t in metadata.inputs] == [
        ("photo", [-1, 3, 8, 6]), ("facts:0", [-1, 4]),
    ]  # fmt: skip
    assert [(t.name, list(t.dims)) for t in client.model_config().input] == [
        ("photo", [3, 8, 6]), ("facts:0", [4]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.pop("facts:0"), "input 'facts:0' is not given"),
        (lambda x: x.update(more=x["photo"]), "input 'more' is unknown"),
        (lambda x: x.update(photo=x["photo"][:1]), "the same N, got {'photo': 1, 'facts:0': 2}"),
        (lambda x: x.update(photo=x["photo"][:, :2]), "arrays of shape [N, 3, 8, 6]"),
    ],
)
def test_the_client_refuses_what_does_not_fit(client, change, words):
    x = inputs(2)
    change(x)
    with pytest.raises(convserve_client.errors.InvalidRequestError) as caught:
        client.predict(x)
    assert words in str(caught.value)


def test_what_takes_one_array_says_so(client):
    image = inputs(1)["photo"]
    for call in (
        lambda: client.predict(image),
        lambda: client.classify([b"any"]),
        lambda: list(client.predict_many([image])),
    ):
        with pytest.raises(convserve_client.errors.InvalidRequestError, match="has the inputs"):
            call()


def request(x: dict[str, np.ndarray], *, raw: bool = True) -> protocol.ModelInferRequest:
    message = protocol.ModelInferRequest(model_name="pair")
    for name, value in x.items():
        tensor = message.inputs.add(name=name, datatype="FP32", shape=value.shape)
        if raw:
            message.raw_input_contents.append(tensors.to_raw(value))
        else:
            tensor.contents.CopyFrom(tensors.to_contents(value))
    return message


def infer(served, message):
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        return Stub(channel).ModelInfer(message, timeout=WAIT)


def test_typed_contents_in_any_order(served, model):
    x = inputs(2, seed=1)
    answer = infer(served, request(dict(reversed(x.items())), raw=False))
    found = tensors.read_tensors(answer.outputs, answer.raw_output_contents)
    np.testing.assert_array_equal(found["output"], model.predict(x)["output"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.pop("photo"), "expected 2 inputs but got 1 inputs for model 'pair'"),
        (lambda x: x.update(other=x.pop("photo")), "missing ['photo']; unexpected ['other']"),
        (lambda x: x.update(photo=x["photo"][:1]), "the same batch-size for model 'pair'"),
        (lambda x: x.update(photo=x["photo"][..., 1:]), "Expected [-1,3,8,6], got [2,3,8,5]"),
    ],
)
def test_the_server_refuses_what_does_not_fit(served, change, words):
    x = inputs(2)
    change(x)
    with pytest.raises(grpc.RpcError) as caught:
        infer(served, request(x))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_an_input_twice_or_without_its_contents(served):
    message = request(inputs(2))
    del message.raw_input_contents[1]
    with pytest.raises(grpc.RpcError, match="Expected 2, got 1"):
        infer(served, message)
    message = request(inputs(2))
    message.inputs[1].name = "photo"
    with pytest.raises(grpc.RpcError, match="given more than once"):
        infer(served, message)


@pytest.fixture
def region(served):
    """A registered region with what is put into it."""
    memory = shared_memory.SharedMemory(create=True, size=4096)
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        stub = Stub(channel)
        registration = {"name": "r", "key": memory.name, "byte_size": 4096}
        stub.SystemSharedMemoryRegister(
            protocol.SystemSharedMemoryRegisterRequest(**registration), timeout=WAIT
        )
        yield memory
        stub.SystemSharedMemoryUnregister(
            protocol.SystemSharedMemoryUnregisterRequest(name="r"), timeout=WAIT
        )
    memory.close()
    memory.unlink()


def put(region, message, place, value):
    """Have an input of the message lie in shared memory."""
    region.buf[: value.nbytes] = tensors.to_raw(value)
    tensor = message.inputs[place]
    tensor.ClearField("contents")
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = value.nbytes
    if message.raw_input_contents:
        del message.raw_input_contents[place]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("name", ["photo", "facts:0"])
def test_one_input_in_shared_memory_and_one_in_the_message(served, model, region, name, raw):
    x = inputs(2, seed=3)
    message = request(x, raw=raw)
    put(region, message, list(x).index(name), x[name])
    answer = infer(served, message)
    found = tensors.read_tensors(answer.outputs, answer.raw_output_contents)
    np.testing.assert_array_equal(found["map"], model.predict(x)["map"])


def test_what_is_wrong_with_the_other_input_is_said(served, region):
    x = inputs(2)
    message = request(x, raw=False)
    put(region, message, 0, x["photo"])
    message.inputs[1].contents.fp32_contents.pop()
    with pytest.raises(grpc.RpcError, match="'facts:0': expected 8 elements for FP32"):
        infer(served, message)
    message.inputs[1].ClearField("contents")
    with pytest.raises(grpc.RpcError, match="'facts:0' has neither contents nor a region"):
        infer(served, message)
