"""Small graphs with every trainable operator, and gradients by central differences."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import layers
from convserve.graph import Graph
from convserve.training import SGD, LayerwiseStep
from convserve.training.loss import smoothed_targets

CLASSES = 3


def residual() -> Graph:
    g = Graph((2, 6, 6))
    x = g.add(layers.Conv2d(4, 3, padding=1))
    y = g.add(layers.ReLU(), g.add(layers.BatchNorm()))
    y = g.add(layers.Conv2d(4, 3, padding=1, bias=False), y)
    g.add(layers.Add(), y, x)
    g.add(layers.GlobalAvgPool2d())
    return classified(g)


def branches() -> Graph:
    """Concat of three readers of one layer, with grouped, dilated and strided convolutions."""
    g = Graph((2, 7, 7))
    x = g.add(layers.Conv2d(4, 3, padding=1))
    a = g.add(layers.Conv2d(4, 3, padding=2, dilation=2, groups=2), x)
    b = g.add(layers.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), x)
    y = g.add(layers.Concat(), a, x, b)
    g.add(layers.Conv2d(3, 3, stride=2, rounding="floor"), y)
    return classified(g)


def pools() -> Graph:
    g = Graph((1, 8, 8))
    g.add(layers.Conv2d(3, 3, padding=((0, 1), (1, 0)), rounding="floor"))
    g.add(layers.MaxPool2d(2, stride=2, rounding="ceil"))
    g.add(layers.AvgPool2d(2, stride=1))
    g.add(layers.Flatten())
    g.add(layers.Affine(5, bias=False))
    g.add(layers.BatchNorm(eps=1e-3))
    return classified(g)


def gate() -> Graph:
    """One value a channel added to every pixel; a softmax inside; logits without a softmax."""
    g = Graph((3, 4, 4))
    x = g.add(layers.Conv2d(3, 1))
    g.add(layers.Add(), g.add(layers.GlobalAvgPool2d(), x), x)
    g.add(layers.Flatten())
    g.add(layers.Affine(4))
    g.add(layers.Softmax())
    g.add(layers.Affine(CLASSES))
    return g


def twice() -> Graph:
    """A layer added to itself, and one that nothing depends on."""
    g = Graph((1, 4, 4))
    x = g.add(layers.Conv2d(2, 3))
    g.add(layers.Conv2d(2, 1), x)
    y = g.add(layers.Add(), x, x)
    g.add(layers.Dropout(0.0), y)
    return classified(g)


def classified(g: Graph) -> Graph:
    g.add(layers.Flatten())
    g.add(layers.Affine(CLASSES))
    g.add(layers.Softmax())
    return g


GRAPHS = [residual, branches, pools, gate, twice]


def problem(make, dtype, count=4):
    graph = make()
    rng = np.random.default_rng(1)
    params = {
        name: value.astype(dtype) + (rng.uniform(0.1, 0.5, value.shape).astype(dtype))
        for name, value in graph.initialise(0).items()
    }
    x = rng.standard_normal((count, *graph.input_shape)).astype(dtype)
    targets = smoothed_targets(np.arange(count) % CLASSES, CLASSES, 0.1).astype(dtype)
    return LayerwiseStep(graph, params, SGD()), x, targets


def numerical(step, x, targets, array, index, h=1e-6):
    value = array[index]
    losses = []
    for delta in (h, -h):
        array[index] = value + delta
        losses.append(step.gradients(x, targets)[0].loss)
    array[index] = value
    return (losses[0] - losses[1]) / (2 * h)


def check_against_differences(make):
    """The layerwise step's gradients, on the naive reference in float64."""
    step, x, targets = problem(make, np.float64)
    _, grads = step.gradients(x, targets)
    assert all(np.abs(grad).max() > 0 for grad in grads.values())
    rng = np.random.default_rng(2)
    for name, grad in grads.items():
        for _ in range(min(grad.size, 4)):
            index = tuple(int(rng.integers(size)) for size in grad.shape)
            expected = numerical(step, x, targets, step.params[name], index)
            assert grad[index] == pytest.approx(expected, rel=1e-5, abs=1e-8), (name, index)
