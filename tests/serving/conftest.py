"""A real `convserve serve` process, shared by the tests, and the bare calls to talk to it."""

from __future__ import annotations

import io
import itertools
import threading
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest
from model_configs import make_config
from PIL import Image
from post_state import PostState
from server_process import WAIT, ServerProcess, Stub, make_request

import convserve_client
from convserve import model_file
from convserve.engine.model import Model
from convserve.engine.repository import ModelRepository, ServedModel
from convserve.engine.scheduler import BatchScheduler
from convserve.graph import Graph, architectures, layers
from convserve.serving.server import Options, Server
from convserve_client import protocol, tensors


def save(path, graph, seed, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    params = graph.initialise(np.random.default_rng(seed))
    model_file.save(path, model_file.ModelFile(graph, params, **keywords))
    return path


def plain_graph():
    """An RGB model of two outputs, of which one is a feature map, and no preprocessing."""
    graph = Graph((3, 8, 8), input_name="image")
    features = graph.add(layers.Conv2d(5, 3, padding=1), name="features")
    graph.add(layers.ReLU())
    graph.add(layers.Flatten())
    scores = graph.add(layers.Affine(4), name="scores")
    graph.set_output(scores, "scores")
    graph.set_output(features, "features")
    return graph


LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "ninth: Ω")


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """digits/{1,2,10} of different weights, and plain/1."""
    root = tmp_path_factory.mktemp("models")
    preprocessing = model_file.Preprocessing(28, 28, "grey", (0.1307,), (0.3081,))
    for version in (1, 2, 10):
        save(
            root / "digits" / str(version) / "model.npz",
            architectures.build("lenet"),
            version,
            labels=LABELS,
            preprocessing=preprocessing,
        )
    save(root / "plain" / "1" / "model.npz", plain_graph(), 0)
    return root


@pytest.fixture(scope="session")
def digits_path(repository):
    return repository / "digits" / "10" / "model.npz"


@pytest.fixture(scope="session")
def digits(digits_path):
    """The served model in this process: what every answer is compared with, bit for bit."""
    return Model.from_file(model_file.load(digits_path), name="digits")


@pytest.fixture(scope="session")
def plain(repository):
    path = repository / "plain" / "1" / "model.npz"
    return Model.from_file(model_file.load(path), name="plain")


def warm(server, callers=48):
    """Have the server do once what takes memory for good: its threads, what it imports on first
    use, and the arenas of large batches, which come over several connections.
    """
    model = server.model.split(",")[0]
    files = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        file = io.BytesIO()
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(file, kind)
        files.append(file.getvalue())
    encoded = protocol.ModelInferRequest(model_name=model)
    encoded.inputs.add(name="input", datatype="BYTES", shape=[len(files)])
    encoded.raw_input_contents.append(tensors.encode_bytes(files))
    few, many = (make_request(np.zeros((n, 1, 28, 28), np.float32), model=model) for n in (2, 64))
    with ExitStack() as stack:
        stubs = [Stub(stack.enter_context(server.connect())) for _ in range(8)]
        for message in (few, encoded, many):
            calls = [stubs[n % 8].ModelInfer.future(message, timeout=WAIT) for n in range(callers)]
            for call in calls:
                call.result()


@pytest.fixture(scope="session")
def server(repository, tmp_path_factory):
    process = ServerProcess(
        "--model-repository", repository, log=tmp_path_factory.mktemp("log") / "server.log"
    )
    warm(process)
    yield process
    process.close()
    assert "Traceback" not in process.log, process.log


def starter(folder):
    """A function that starts processes; all are gone when the generator ends."""
    number = itertools.count()
    with ExitStack() as stack:

        def start(*arguments, **keywords):
            keywords.setdefault("log", folder / f"{next(number)}.log")
            process = ServerProcess(*arguments, **keywords)
            stack.callback(process.close)
            return process

        yield start


@pytest.fixture
def start_server(tmp_path):
    """Start further processes; all are gone at the end of the test."""
    yield from starter(tmp_path)


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """The same, warmed up, until the end of the module."""
    with contextmanager(starter)(tmp_path_factory.mktemp("launched")) as start:

        def warmed(*arguments, **keywords):
            process = start(*arguments, **keywords)
            warm(process)
            return process

        yield warmed


@pytest.fixture
def stub(server):
    return server.stub


@pytest.fixture(scope="session")
def pixels():
    """uint8[16, 1, 28, 28]."""
    return np.random.default_rng(7).integers(0, 256, (16, 1, 28, 28), np.uint8)


@pytest.fixture(scope="session")
def images(pixels, digits):
    """The same as float32, normalised."""
    return digits.preprocessing.normalise(pixels)


@pytest.fixture(scope="session")
def infer_request():
    return make_request


@pytest.fixture
def read_answer():
    def read(response):
        return tensors.read_tensors(response.outputs, response.raw_output_contents)

    return read


@pytest.fixture
def refused(stub):
    """Call with a wrong request; returns the error after checking code and words."""

    def check(request, code, *words, method="ModelInfer"):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request, timeout=WAIT)
        error = caught.value
        assert error.code() == getattr(grpc.StatusCode, code), error
        for word in words:
            assert word in error.details(), error.details()
        return error

    return check


@pytest.fixture
def unharmed(server, images, digits):
    """After the test the server is as it was before: see `post_state`."""
    expected = digits.predict(images[:3])
    before = PostState(server, make_request(images[:3]), expected)
    yield
    before.check()


class GatedModel:
    """A model whose computing a test holds and releases, and may break."""

    def __init__(self, model):
        self._model = model
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.fail = False

    def __getattr__(self, name):
        return getattr(self._model, name)

    def predict(self, x, outputs=None, *, threads=None):
        self.batches.append(len(x))
        self.entered.release()
        assert self.gate.wait(WAIT)
        if self.fail:
            raise RuntimeError("secret of the house")
        return self._model.predict(x, outputs)


class GatedServer(Server):
    """A server in this process around a GatedModel named "digits"."""

    def __init__(self, model, sinks=(), **batching):
        self.model = GatedModel(model)
        self.scheduler = BatchScheduler(self.model, make_config(**batching))
        served = ServedModel("digits", "10", self.model, self.scheduler)
        super().__init__(ModelRepository([served]), Options(port=0, metrics_port=0), sinks=sinks)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = Stub(self.channel)

    def close(self):
        self.model.gate.set()
        assert self.stop(WAIT)
        self.channel.close()


@pytest.fixture
def client(served):
    """Our client of the module's own server, `served`."""
    with convserve_client.Client(f"127.0.0.1:{served.port}") as client:
        yield client


@pytest.fixture
def gated(digits):
    """Start servers whose model the test holds; all are stopped at the end."""
    with ExitStack() as stack:

        def start(**keywords):
            server = GatedServer(digits, **keywords)
            stack.callback(server.close)
            return server

        yield start
