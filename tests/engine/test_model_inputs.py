"""Models of several inputs in process, and their requests in batches."""

from __future__ import annotations

import numpy as np
import pytest
from model_configs import make_config

from convserve import model_file
from convserve.engine.batch import Batch
from convserve.engine.model import Model, load
from convserve.engine.scheduler import BatchScheduler, Request
from convserve.errors import ModelFileError, ShapeError
from convserve.graph import Graph, layers


def pair() -> Graph:
    graph = Graph((1, 4, 4), input_name="a")
    graph.add_input("b", (2,))
    row = graph.add(layers.Concat(), graph.add(layers.Flatten(), "a"), "b")
    graph.add(layers.Affine(3), row)
    return graph


@pytest.fixture
def model(tmp_path):
    graph = pair()
    model_file.save(tmp_path / "pair.npz", model_file.ModelFile(graph, graph.initialise(1)))
    return load(tmp_path / "pair.npz")


def inputs(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.random((count, 1, 4, 4), np.float32),
        "b": rng.random((count, 2), np.float32),
    }


def test_a_dict_or_a_list(model):
    assert model.inputs == {"a": (1, 4, 4), "b": (2,)}
    x = inputs(3)
    scores = model.predict(x)
    weight, bias = (model.params[f"affine1.{name}"] for name in ("weight", "bias"))
    expected = np.concatenate([x["a"].reshape(3, 16), x["b"]], axis=1) @ weight.T + bias
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict([x["a"], x["b"]]), scores)
    alone = model.predict({name: value[1:2] for name, value in x.items()})
    np.testing.assert_array_equal(alone, scores[1:2])
    np.testing.assert_array_equal(model.predict(x, outputs=["b"])["b"], x["b"])


def test_the_file_says_the_oldest_version_that_holds_it(model):
    graph = Graph((1, 2, 2))
    graph.add(layers.ReLU())
    assert model_file.format_version(model_file.ModelFile(graph, {})) == 1
    assert model_file.format_version(model_file.ModelFile(pair(), {})) == 2


def test_one_input_by_its_name():
    graph = Graph((1, 2, 2))
    graph.add(layers.ReLU())
    model = Model.from_file(model_file.ModelFile(graph, {}))
    x = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_array_equal(model.predict({"input": x}), x)
    with pytest.raises(ShapeError, match="unknown input 'x'"):
        model.predict({"input": x, "x": x})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x: x["a"], TypeError, "must be a dict or a list of arrays"),
        (lambda x: "ab", TypeError, "must be a numpy array, got str"),
        (lambda x: {"a": x["a"]}, ShapeError, "x lacks input 'b'"),
        (lambda x: {**x, "c": x["a"]}, ShapeError, "unknown input 'c'"),
        (lambda x: [x["a"]], ShapeError, "2 arrays, one for each of"),
        (lambda x: {**x, "b": x["b"][:1]}, ShapeError, "same N, got {'a': 3, 'b': 1}"),
        (lambda x: {**x, "b": x["b"][0]}, ShapeError, "'b' must have the shape"),
        (lambda x: {**x, "a": x["a"].astype(np.float64)}, TypeError, "'a' must be float32"),
        (lambda x: {**x, "a": x["a"].astype(np.uint8)}, TypeError, "has no preprocessing"),
    ],
)
def test_what_does_not_fit(model, change, error, words):
    with pytest.raises(error) as caught:
        model.predict(change(inputs(3)))
    assert words in str(caught.value)


def test_images_alone_are_not_classified(model):
    with pytest.raises(ShapeError, match="classify needs a model with one"):
        model.classify([np.zeros((4, 4), np.uint8)])


def test_preprocessing_needs_one_input(tmp_path):
    graph = pair()
    told = model_file.Preprocessing(4, 4, "grey", (0.5,), (0.5,))
    with pytest.raises(ModelFileError, match="several inputs"):
        model_file.save(
            tmp_path / "x.npz",
            model_file.ModelFile(graph, graph.initialise(0), preprocessing=told),
        )
    assert not list(tmp_path.iterdir())


def test_batches_of_several_inputs():
    parts = [inputs(2, 1), inputs(1, 2)]
    batch = Batch(parts)
    merged = batch.merge()
    assert batch.size == 3 and isinstance(merged, dict)
    for name in ("a", "b"):
        np.testing.assert_array_equal(merged[name], np.concatenate([p[name] for p in parts]))
    first, second = batch.split({"y": np.arange(3)})
    assert (first["y"].tolist(), second["y"].tolist()) == ([0, 1], [2])
    with pytest.raises(ShapeError, match="must agree"):
        Batch([inputs(1), {**inputs(1), "b": np.zeros((1, 3), np.float32)}])


def test_requests_of_several_inputs_share_a_batch(model):
    scheduler = BatchScheduler(model, make_config(max_queue_delay=30.0, max_batch_size=5))
    requests = [Request(inputs(size, seed=size)) for size in (2, 3)]
    try:
        for request in requests:
            scheduler.submit(request)
        for size, request in zip((2, 3), requests, strict=True):
            expected = model.predict(inputs(size, seed=size))
            np.testing.assert_array_equal(request.result()["output"], expected)
    finally:
        assert scheduler.stop(20)
