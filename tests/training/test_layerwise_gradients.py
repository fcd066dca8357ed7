"""The layerwise step's gradients against numerical derivatives, over whole graphs.

The walk over the graph and the rules are run twice: in float64 on the naive reference, where
central differences are exact to many digits, and in float32 on the kernels, which must agree.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convserve import layers
from convserve.errors import ShapeError
from convserve.graph import Graph
from convserve.training import SGD, LayerwiseStep, rules
from convserve.training.loss import cross_entropy, smoothed_targets

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


@pytest.mark.parametrize("make", GRAPHS)
def test_gradients_are_numerical_derivatives(make, monkeypatch):
    monkeypatch.setattr(rules, "kernels", reference)
    step, x, targets = problem(make, np.float64)
    _, grads = step.gradients(x, targets)
    assert all(np.abs(grad).max() > 0 for grad in grads.values())
    rng = np.random.default_rng(2)
    for name, grad in grads.items():
        for _ in range(min(grad.size, 6)):
            index = tuple(int(rng.integers(size)) for size in grad.shape)
            expected = numerical(step, x, targets, step.params[name], index)
            assert grad[index] == pytest.approx(expected, rel=1e-5, abs=1e-8), (name, index)


@pytest.mark.parametrize("make", GRAPHS)
def test_the_kernels_agree_with_the_reference(make, monkeypatch):
    step, x, targets = problem(make, np.float32)
    result, grads = step.gradients(x, targets)
    scores = step.predict(x)
    monkeypatch.setattr(rules, "kernels", reference)
    exact, x64, targets64 = problem(make, np.float64)
    expected, expected_grads = exact.gradients(x64, targets64)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(scores, exact.predict(x64), rtol=1e-4, atol=1e-5)


def test_what_nothing_depends_on_is_left_alone():
    step, x, targets = problem(twice, np.float32)
    before = {name: value.copy() for name, value in step.params.items()}
    step.step(x, targets, 0.1)
    assert (step.params["conv2.weight"] == before["conv2.weight"]).all()
    assert (step.params["conv1.weight"] != before["conv1.weight"]).any()


def test_batch_norm_moves_its_running_statistics_by_the_momentum():
    g = Graph((2, 3, 3))
    g.add(layers.BatchNorm(momentum=0.25))
    g = classified(g)
    step = LayerwiseStep(g, g.initialise(0), SGD())
    x = np.random.default_rng(0).standard_normal((5, 2, 3, 3), np.float32)
    step.gradients(x, smoothed_targets(np.zeros(5, np.int64), CLASSES))
    values = x.transpose(1, 0, 2, 3).reshape(2, -1)
    np.testing.assert_allclose(step.params["bn1.running_mean"], 0.25 * values.mean(1), rtol=1e-4)
    np.testing.assert_allclose(
        step.params["bn1.running_var"], 0.75 + 0.25 * values.var(1, ddof=1), rtol=1e-5
    )


def test_dropout_keeps_the_share_and_the_mean_and_depends_on_the_step():
    g = Graph((1, 40, 50))
    g.add(layers.Flatten())
    g.add(layers.Dropout(0.25))
    rule = rules.RULES[layers.Dropout]
    x = np.ones((3, 2000), np.float32)
    y, mask = rule.forward(g.nodes[-1].op, [x], {}, np.random.default_rng(0))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert y.mean() == pytest.approx(1.0, abs=0.03)
    (dx,), _ = rule.backward(g.nodes[-1].op, mask, x, {})
    assert (dx == y).all()
    assert rule.forward(g.nodes[-1].op, [x], {}, None)[0] is x

    g.add(layers.Affine(CLASSES))
    step = LayerwiseStep(g, g.initialise(0), SGD())
    images = np.ones((2, 1, 40, 50), np.float32)
    targets = smoothed_targets(np.array([0, 1]), CLASSES)
    first = step.gradients(images, targets)[0].loss
    assert step.gradients(images, targets)[0].loss == first
    step.step(images, targets, 1e-12)
    assert step.gradients(images, targets)[0].loss != first


def test_graphs_that_can_not_be_trained_are_refused():
    g = classified(Graph((1, 4, 4)))
    g.set_output("affine1", "a")
    g.set_output("softmax1", "b")
    with pytest.raises(ShapeError, match="one output of shape"):
        LayerwiseStep(g, g.initialise(0), SGD())
    g = Graph((1, 4, 4))
    g.add(layers.ReLU())
    with pytest.raises(ShapeError, match="one output of shape"):
        LayerwiseStep(g, {}, SGD())
    g = Graph((1, 4, 4))
    g.add(layers.GELU())
    g = classified(g)
    with pytest.raises(ShapeError, match="layer 'gelu1': gelu is for inference only"):
        LayerwiseStep(g, g.initialise(0), SGD())


def test_cross_entropy_by_hand_and_for_huge_scores():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]], np.float32)
    targets = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    loss, grad = cross_entropy(logits, targets)
    assert loss == pytest.approx(np.log(4.0) / 2, rel=1e-6)
    np.testing.assert_allclose(grad, [[-0.375, 0.375], [0, 0]], atol=1e-6)
    assert not np.isfinite(cross_entropy(np.full((1, 2), np.inf, np.float32), targets[:1])[0])


def test_smoothed_targets():
    targets = smoothed_targets(np.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(targets, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    assert targets.dtype == np.float32
