"""The layerwise step's gradients against numerical derivatives, over whole graphs.

The walk over the graph and the rules are run twice: in float64 on the naive reference, where
central differences are exact to many digits, and in float32 on the kernels, which must agree.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
from training_graphs import (
    CLASSES,
    GRAPHS,
    check_against_differences,
    classified,
    problem,
    twice,
)

from convserve import layers
from convserve.errors import ShapeError
from convserve.graph import Graph
from convserve.training import SGD, LayerwiseStep, rules
from convserve.training.loss import cross_entropy, smoothed_targets


@pytest.mark.parametrize("make", GRAPHS)
def test_gradients_are_numerical_derivatives(make, monkeypatch):
    monkeypatch.setattr(rules, "kernels", reference)
    check_against_differences(make)


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
    g.add(layers.LRN(3))
    g = classified(g)
    with pytest.raises(ShapeError, match="layer 'lrn1': lrn is for inference only"):
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
