"""Plans at their limits: extreme windows and halos, many layers and outputs, wrong parameters."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import layers
from convserve.errors import ShapeError, UnknownNameError
from convserve.graph import Graph
from convserve.kernels import conv2d_backward
from convserve.plan import compile_plan

FAR = 2**31 - 1


def run(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    return compile_plan(graph, graph.initialise(0)).run(x)


def test_an_average_over_more_places_than_an_int_counts():
    graph = Graph((1, 10, 10))
    graph.add(layers.AvgPool2d(50_000, padding=25_000, rounding="floor"))
    (mean,) = run(graph, np.ones((1, 1, 10, 10), np.float32))
    np.testing.assert_allclose(mean, 100 / 50_000**2, rtol=1e-6)


def test_a_window_whose_end_is_beyond_the_ints():
    graph = Graph((1, 10, 1))
    graph.add(layers.MaxPool2d((FAR - 8, 1), (10, 1), ((5, FAR - 15), (0, 0)), "ceil"))
    x = np.arange(10, dtype=np.float32).reshape(1, 1, 10, 1)
    assert run(graph, x)[0].ravel().tolist() == [9, 9]


def test_a_gradient_through_a_stride_beyond_the_image():
    x, weight = np.ones((1, 1, 3, 3), np.float32), np.full((1, 1, 1, 1), 2, np.float32)
    grad = np.ones((1, 1, 1, 1), np.float32)
    dx, dweight, _ = conv2d_backward(grad, x, weight, stride=FAR, rounding="floor")
    assert dx.ravel().tolist() == [2, *[0] * 8] and dweight.item() == 1
    dx, dweight, _ = conv2d_backward(grad, x, weight, stride=FAR, padding=2, rounding="floor")
    assert not dx.any() and dweight.item() == 0  # the only window lies in the padding


@pytest.mark.parametrize("filters", [1, 16])
@pytest.mark.parametrize("sides", [((FAR - 20, 0), (0, FAR - 20)), ((2**30, 0), (2**30, 0))])
def test_halos_are_limited_together(filters, sides):
    """Two convolutions pad the same tensor on different sides, each within the limit."""
    graph = Graph((1, 10, 1))
    shared = graph.add(layers.Conv2d(filters, 1))
    for place, stride in enumerate(((2**30, 1), (1, 2**30))):
        padding = tuple(side if axis == place else (0, 0) for axis, side in enumerate(sides))
        conv = layers.Conv2d(1, 1, stride, padding, rounding="floor")
        graph.set_output(graph.add(conv, shared), f"output{place}")
    with pytest.raises(ShapeError, match=r"'conv1' with the padding .* more than 2147483647"):
        compile_plan(graph, graph.initialise(0))


def test_any_number_of_outputs():
    graph = Graph((1, 2, 2))
    names = [graph.add(layers.Clip(-1000, 1000 - i)) for i in range(300)]
    plan = compile_plan(graph, {}, names)
    results = plan.run(np.full((3, 1, 2, 2), 5000, np.float32), 2)
    assert [result[2, 0, 1, 1] for result in results] == [1000 - i for i in range(300)]


def test_memory_does_not_grow_with_a_large_affine_layer_times_the_group():
    graph = Graph((16, 256, 512))
    graph.add(layers.ReLU())
    graph.add(layers.Flatten())
    graph.add(layers.Affine(1))
    assert compile_plan(graph, graph.initialise(0)).arena_bytes < 32 << 20


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("conv1.bias", np.zeros(2, np.float32), ShapeError),
        ("conv1.weight", np.zeros((3, 1, 1, 1), np.float32), ShapeError),
        ("prelu1.slope", np.zeros(1, np.float32), ShapeError),
        ("prelu1.slope", np.zeros(3), TypeError),
        ("prelu1.slope", None, UnknownNameError),
    ],
)
def test_parameters_that_do_not_fit_are_refused(name, value, error):
    graph = Graph((2, 2, 2))
    graph.add(layers.Conv2d(3, 1))
    graph.add(layers.PReLU())
    params = graph.initialise(0)
    if value is None:
        del params[name]
    else:
        params[name] = value
    with pytest.raises(error, match=name):
        compile_plan(graph, params)
