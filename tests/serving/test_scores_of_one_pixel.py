"""A classifier whose scores are [N, C, 1, 1], as SqueezeNet's in ONNX, served with labels."""

from __future__ import annotations

import io

import grpc
import numpy as np
import pytest
from PIL import Image
from server_process import Stub, make_request

from convserve import model_file
from convserve.cli._classifiers import ServedClassifier
from convserve.engine.model import Model, top_k
from convserve.engine.repository import ModelRepository
from convserve.graph import Graph, layers
from convserve.serving.server import Options, Server
from convserve_client import tensors

WAIT = 120.0
LABELS = tuple(f"class {n}" for n in range(17))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    graph = Graph((3, 6, 5))
    graph.add(layers.Conv2d(len(LABELS), 3, padding=1))
    graph.add(layers.GlobalAvgPool2d())
    graph.add(layers.Softmax())
    path = tmp_path_factory.mktemp("pixel") / "squeezed.npz"
    preprocessing = model_file.Preprocessing(6, 5, "rgb", (0.4,) * 3, (0.2,) * 3)
    file = model_file.ModelFile(graph, graph.initialise(2), LABELS, preprocessing)
    model_file.save(path, file)
    return path


@pytest.fixture(scope="module")
def served(path):
    server = Server(ModelRepository.open(path), Options(port=0, metrics_port=0))
    yield server
    assert server.stop(WAIT)


@pytest.fixture(scope="module")
def model(path):
    return Model.from_file(model_file.load(path))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(5).integers(0, 256, (7, 3, 6, 5), np.uint8)


def test_shapes_and_values_are_the_models(client, model, pixels):
    metadata, config = client.model_metadata(), client.model_config()
    assert [list(output.shape) for output in metadata.outputs] == [[-1, 17, 1, 1]]
    assert [list(output.dims) for output in config.output] == [[17, 1, 1]]
    expected = model.predict(pixels)
    for count in (0, 1, 2, 7):
        answer = client.predict(pixels[:count])
        assert answer.shape == (count, 17, 1, 1)
        np.testing.assert_array_equal(answer, expected[:count])


def test_the_classification_extension_takes_all_but_the_batch_as_one_axis(
    served, client, model, pixels
):
    x = model.preprocessing.normalise(pixels)
    message = make_request(x, model="squeezed")
    message.outputs.add(name="output").parameters["classification"].int64_param = 3
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        answer = Stub(channel).ModelInfer(message, timeout=WAIT)
    (output,) = answer.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [7, 3])
    texts = tensors.decode_bytes(answer.raw_output_contents[0], 21)
    best = top_k(model.predict(x)[:, :, 0, 0], 3, LABELS)
    wanted = [f"{score:f}:{LABELS.index(name)}:{name}" for row in best for name, score in row]
    assert [bytes(text).decode() for text in texts] == wanted


def test_the_client_classifies(client, model, pixels):
    files = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(file, "PNG")
        files.append(file.getvalue())
    expected = top_k(model.predict(pixels)[:, :, 0, 0], 3, LABELS)
    assert client.classify(files, top_k=3) == expected
    assert client.classify(pixels, top_k=3) == expected
    assert client.classify(pixels[:0]) == []


def test_the_command_line_takes_them_as_rows(client, model, pixels):
    classifier = ServedClassifier(client, None, 4)
    assert (classifier.classes, classifier.outputs) == (17, ((17,),))
    (scores,) = classifier.scores([pixels])
    np.testing.assert_array_equal(scores, model.predict(pixels)[:, :, 0, 0])
