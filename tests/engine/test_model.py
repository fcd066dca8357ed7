"""convserve.load and what a Model checks, answers and promises."""

from __future__ import annotations

import io
import subprocess
import sys

import graph_reference
import numpy as np
import pytest
import reference
from PIL import Image

import convserve
from convserve import architectures, layers, model_file
from convserve.engine.model import Model, top_k
from convserve.errors import ImageError, ModelFileError, ShapeError, UnknownNameError
from convserve.preprocessing import Preprocessing

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GREY = Preprocessing(28, 28, "grey", (0.13,), (0.31,))


def lenet_file(seed: int = 0) -> model_file.ModelFile:
    graph = architectures.build("lenet")
    return model_file.ModelFile(graph, graph.initialise(seed), LABELS, GREY)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    path = tmp_path_factory.mktemp("model") / "digits.npz"
    model_file.save(path, lenet_file())
    return convserve.load(path)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), np.uint8)


def test_what_a_model_tells(model):
    assert model.name == "digits"
    assert (model.input_name, model.input_shape, model.output_names) == (
        "input",
        (1, 28, 28),
        ("output",),
    )
    assert model.labels == LABELS and model.preprocessing == GREY and model.threads >= 1


def test_predict_agrees_with_the_reference(model, pixels):
    x = GREY.normalise(pixels)
    file = lenet_file()
    output = file.graph.outputs["output"]
    expected = graph_reference.evaluate(file.graph, file.params, x)[output]
    bound = graph_reference.error_bounds(file.graph, file.params, x)[output]
    reference.assert_close(model.predict(x), expected, bound)
    reference.assert_same_bits(model.predict(pixels), model.predict(x))


def test_strided_and_read_only_inputs(model, pixels):
    x = GREY.normalise(pixels)
    expected = model.predict(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    reference.assert_same_bits(model.predict(frozen), expected)
    reference.assert_same_bits(model.predict(np.asfortranarray(x)), expected)
    reference.assert_same_bits(model.predict(x[::-1]), expected[::-1].copy())
    assert model.predict(x[:0]).shape == (0, 10)


def test_layers_by_name(model, pixels):
    found = model.predict(pixels, outputs=["conv1", "pool1", "logits", "output", "input"])
    assert {name: value.shape for name, value in found.items()} == {
        "conv1": (5, 6, 28, 28),
        "pool1": (5, 6, 14, 14),
        "logits": (5, 10),
        "output": (5, 10),
        "input": (5, 1, 28, 28),
    }
    assert found["conv1"].min() < 0, "conv1 is before its ReLU"
    reference.assert_same_bits(found["input"], GREY.normalise(pixels))
    powers = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
    np.testing.assert_allclose(found["output"], powers / powers.sum(axis=1, keepdims=True), 1e-5)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "numpy array, got list"),
        (np.ma.zeros((1, 1, 28, 28), np.float32), TypeError, "must not be a masked array"),
        (np.zeros((1, 1, 28, 28)), TypeError, "float32 .* or uint8 .* float64"),
        (np.zeros((1, 28, 28), np.float32), ShapeError, r"\[N, 1, 28, 28\].*give x\[None\]"),
        (np.zeros((2, 1, 28, 29), np.float32), ShapeError, r"got \[2, 1, 28, 29\]"),
        (np.zeros((2, 3, 28, 28), np.float32), ShapeError, r"\[N, 1, 28, 28\]"),
        (np.zeros(0, np.float32), ShapeError, r"got \[0\]"),
    ],
)
def test_wrong_inputs(model, x, error, message):
    with pytest.raises(error, match=message):
        model.predict(x)


def test_wrong_outputs(model, pixels):
    with pytest.raises(UnknownNameError, match=r"conv7.*conv1"):
        model.predict(pixels, outputs=["conv7"])
    with pytest.raises(UnknownNameError, match="at least one"):
        model.predict(pixels, outputs=[])
    with pytest.raises(TypeError, match="list of names"):
        model.predict(pixels, outputs="conv1")


def test_raw_pixels_need_preprocessing(pixels):
    file = lenet_file()
    file.preprocessing = None
    with pytest.raises(TypeError, match="no preprocessing"):
        Model(file).predict(pixels)


def test_several_outputs_come_as_a_dict():
    graph = convserve.Graph((1, 4, 4))
    graph.add(layers.Conv2d(2, 3, padding=1), name="features")
    graph.add(layers.GlobalAvgPool2d(), name="mean")
    graph.set_output("features", "maps")
    graph.set_output("mean", "embedding")
    found = Model(model_file.ModelFile(graph, graph.initialise(0))).predict(
        np.ones((3, 1, 4, 4), np.float32)
    )
    assert {name: value.shape for name, value in found.items()} == {
        "maps": (3, 2, 4, 4),
        "embedding": (3, 2, 1, 1),
    }


def test_classify(model, pixels):
    picture = Image.fromarray(pixels[1, 0])
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    found = model.classify([pixels[0, 0], picture, encoded.getvalue()], top_k=3)
    scores = model.predict(pixels[[0, 1, 1]])
    assert found == top_k(scores, 3, LABELS)
    assert model.classify([]) == []
    with pytest.raises(ImageError):
        model.classify([b"not an image"])
    with pytest.raises(TypeError, match="give \\[image\\]"):
        model.classify(picture.tobytes())


@pytest.mark.parametrize("classes", [3, 10, 17])
def test_classify_with_scores_of_one_pixel(classes):
    graph = convserve.Graph((3, 9, 8))
    graph.add(layers.Conv2d(classes, 3, padding=1))
    graph.add(layers.GlobalAvgPool2d())
    graph.set_output(graph.add(layers.Softmax()), "scores")
    labels = tuple(f"class {n}" for n in range(classes))
    rgb = Preprocessing(9, 8, "rgb", (0.4, 0.5, 0.6), (0.2, 0.1, 0.3))
    model = Model(model_file.ModelFile(graph, graph.initialise(0), labels, rgb), threads=2)
    pixels = np.random.default_rng(1).integers(0, 256, (7, 3, 9, 8), np.uint8)
    expected = model.predict(rgb.normalise(pixels))
    assert expected.shape == (7, classes, 1, 1)
    for count in (0, 1, 2, 7):
        for threads in (1, 2):
            given = model.predict(pixels[:count], threads=threads)
            reference.assert_same_bits(given, expected[:count])
            named = model.predict(pixels[:count], ["scores", "logits"], threads=threads)
            reference.assert_same_bits(named["scores"], expected[:count])
            assert named["logits"].shape == (count, classes, 1, 1)
    images = list(pixels.transpose(0, 2, 3, 1))
    assert model.classify(images, top_k=2) == top_k(expected[:, :, 0, 0], 2, labels)


def test_top_k_order():
    scores = np.array([[0.1, 0.5, 0.5, np.nan], [np.nan, -1, -np.inf, 2]], np.float32)
    assert [[label for label, _ in row] for row in top_k(scores, 9)] == [
        ["1", "2", "0", "3"],
        ["3", "1", "2", "0"],
    ]
    assert top_k(scores[:1], 1, ["a", "b", "c", "d"]) == [[("b", 0.5)]]
    with pytest.raises(ShapeError, match="top_k"):
        top_k(scores, 0)


def test_a_directory_of_versions(tmp_path):
    for version in ("1", "010", "9", "notes"):
        (tmp_path / "digits" / version).mkdir(parents=True)
        model_file.save(tmp_path / "digits" / version / "model.npz", lenet_file(len(version)))
    model = convserve.load(tmp_path / "digits", threads=1)
    x = np.ones((1, 1, 28, 28), np.float32)
    assert model.name == "digits" and model.threads == 1
    reference.assert_same_bits(model.predict(x), Model(lenet_file(3)).predict(x))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="has no <version>"):
        convserve.load(tmp_path / "empty")
    with pytest.raises(ModelFileError, match="missing"):
        convserve.load(tmp_path / "missing.npz")
    with pytest.raises(ModelFileError, match="name too long"):
        convserve.load("a" * 5000)


@pytest.mark.parametrize("threads, error", [(0, ShapeError), (-1, ShapeError), (1.5, TypeError)])
def test_threads_of_a_call_that_are_no_number_from_one(threads, error):
    with pytest.raises(error, match="threads"):
        Model(lenet_file(1)).predict(np.zeros((1, 1, 28, 28), np.float32), threads=threads)


def test_repeated_calls_take_no_more_memory():
    """10,000 calls with changing batches and outputs grow the process by less than 10 MB."""
    script = """
import numpy as np, resource
from convserve import architectures, model_file
from convserve.engine.model import Model
graph = architectures.build("lenet")
model = Model(model_file.ModelFile(graph, graph.initialise(0)))
x = np.ones((64, 1, 28, 28), np.float32)
def work(calls):
    for i in range(calls):
        model.predict(x[: i % 17], outputs=["logits"] if i % 3 else None)
work(500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(10_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert int(grown) < 10_000, f"grew by {grown} KB"
