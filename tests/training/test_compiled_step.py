"""The compiled step against the layerwise one, which is checked against numerical derivatives.

Gradients agree within what float32 sums of so many terms allow: the oracle runs in float64 on the
naive reference for the small graphs, and on the kernels for the large ones.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import reference
import training_graphs as small

from convserve import kernels, layers
from convserve.datasets.base import Split, build
from convserve.errors import ShapeError, TrainingError
from convserve.graph import Graph, architectures
from convserve.training import (
    SGD,
    Adam,
    CompiledStep,
    LayerwiseStep,
    TrainConfig,
    rules,
    train,
)
from convserve.training.groups import Group, matching
from convserve.training.loss import smoothed_targets
from convserve.training.taped_layers import TRAINABLE

CLASSES = small.CLASSES


CURVES = [
    layers.ReLU(),
    layers.Clip(-0.5, 0.75),
    layers.LeakyReLU(0.2),
    layers.LeakyReLU(-0.3),
    layers.ELU(0.7),
    layers.GELU(),
    layers.GELU("tanh"),
    layers.HardSigmoid(),
    layers.HardSwish(),
    layers.SiLU(),
    layers.Sigmoid(),
    layers.Tanh(),
]


def curve(function: layers.Operator) -> Graph:
    """A curve by itself, joined to a convolution if it can be, to batch norm, and to a residual."""
    g = Graph((2, 5, 4))
    x = g.add(layers.AvgPool2d(2, 1), g.add(layers.Conv2d(3, 3, padding=1)))
    x = g.add(function, g.add(function, x))
    x = g.add(function, g.add(layers.BatchNorm(), g.add(layers.Conv2d(3, 1), x)))
    y = g.add(layers.BatchNorm(), g.add(function, g.add(layers.Conv2d(3, 1), x)))
    g.add(function, g.add(layers.Add(), y, x))
    return small.classified(g)


def slopes() -> Graph:
    """PReLU on more channels than a block, on an input with another reader, joined to nothing, on
    features, and on the image as it is given."""
    g = Graph((2, 6, 5))
    g.add(layers.PReLU())
    x = g.add(layers.Conv2d(18, 3, padding=1))
    y = g.add(layers.Conv2d(18, 3, padding=1), g.add(layers.PReLU(), x))
    y = g.add(layers.PReLU(), g.add(layers.BatchNorm(), y))
    g.add(layers.PReLU(), g.add(layers.Add(), y, x))
    g.add(layers.MaxPool2d(2, rounding="floor"))
    g.add(layers.Flatten())
    g.add(layers.BatchNorm(), g.add(layers.Affine(17)))
    g.add(layers.PReLU())
    return small.classified(g)


def excitation() -> Graph:
    """Depthwise convolution and squeeze-and-excitation, 17 channels: one more than a block."""
    g = Graph((3, 8, 8))
    g.add(layers.Conv2d(17, 3, 2, padding=1, bias=False, rounding="floor"))
    g.add(layers.BatchNorm())
    x = g.add(layers.HardSwish())
    y = g.add(layers.Conv2d(17, 3, padding=1, groups=17), x)
    y = g.add(layers.Clip(), g.add(layers.BatchNorm(), y))
    g.add(layers.GlobalAvgPool2d(), y)
    g.add(layers.Conv2d(4, 1))
    g.add(layers.ReLU())
    g.add(layers.Conv2d(17, 1))
    gate = g.add(layers.HardSigmoid())
    y = g.add(layers.Mul(), y, gate)
    y = g.add(layers.Mul(), gate, g.add(layers.Sub(), y, gate))
    g.add(layers.BatchNorm(), g.add(layers.Conv2d(17, 1, bias=False), y))
    g.add(layers.Add(), "bn3", x)
    g.add(layers.GlobalMaxPool2d())
    return small.classified(g)


def dag() -> Graph:
    """Concats on and off the borders of blocks, several readers, strides, dilation, no bias."""
    g = Graph((1, 9, 9))
    x = g.add(layers.ReLU(), g.add(layers.Conv2d(16, 3, padding=1, bias=False)))
    a = g.add(layers.MaxPool2d(3, 1, 1), x)
    b = g.add(layers.Conv2d(16, 3, padding=2, dilation=2, groups=4), x)
    c = g.add(layers.ReLU(), g.add(layers.BatchNorm(), g.add(layers.Conv2d(5, 1), x)))
    y = g.add(layers.Concat(), a, b, c, a)
    z = g.add(layers.Conv2d(16, (3, 2), (2, 3), padding=((1, 0), (0, 1)), rounding="floor"), y)
    w = g.add(layers.Conv2d(16, 3, 3, rounding="floor"), x)
    z = g.add(layers.Concat(), z, g.add(layers.AvgPool2d((1, 1)), z))
    z = g.add(layers.Flatten(), g.add(layers.GlobalAvgPool2d(), z))
    w = g.add(layers.Flatten(), g.add(layers.GlobalMaxPool2d(), w))
    g.add(layers.Concat(), z, w, z)
    g.add(layers.Dropout(0.3))
    g.add(layers.Affine(9))
    g.add(layers.BatchNorm())
    g.add(layers.SiLU())
    g.add(layers.Dropout(0.0))
    g.add(layers.Affine(CLASSES))
    return g


def overlapping() -> Graph:
    """Windows that overlap or leave pixels out, over an activation that others read too."""
    g = Graph((2, 9, 8))
    x = g.add(layers.ReLU(), g.add(layers.Conv2d(4, 3)))
    a = g.add(layers.MaxPool2d(3, 2, ((1, 0), (0, 1)), rounding="floor"), x)
    b = g.add(layers.AvgPool2d(3, 2, ((1, 0), (0, 1)), rounding="floor"), x)
    g.add(layers.Mul(), a, b)
    g.add(layers.MaxPool2d(2, rounding="ceil"), g.add(layers.Conv2d(3, 1)))
    return small.classified(g)


def wide() -> Graph:
    """Weights so large beside the images that threads share the filters, the last block ragged."""
    g = Graph((2, 5, 4))
    x = g.add(layers.ReLU(), g.add(layers.Conv2d(171, 3, padding=1)))
    y = g.add(layers.ReLU(), g.add(layers.Conv2d(171, 3, padding=1), x))
    y = g.add(layers.BatchNorm(), g.add(layers.Conv2d(171, 3, padding=1, bias=False), y))
    g.add(layers.ReLU(), g.add(layers.Add(), y, x))
    g.add(layers.GlobalAvgPool2d())
    return small.classified(g)


def one_pixel() -> Graph:
    """Padded convolutions of one pixel: affine layers read it as a row, and write its gradient."""
    g = Graph((2, 4, 4))
    x = g.add(layers.Conv2d(18, 4))
    y = g.add(layers.BatchNorm(), g.add(layers.Conv2d(18, 3, padding=1), x))
    z = g.add(layers.Conv2d(CLASSES, 3, padding=1), y)
    x, y = (g.add(layers.Affine(CLASSES), g.add(layers.Flatten(), name)) for name in (x, y))
    g.add(layers.Add(), g.add(layers.Add(), x, y), g.add(layers.Flatten(), z))
    return g


def pixel_softmax() -> Graph:
    """Softmax of one pixel, more channels than a block, which padded convolutions read too."""
    g = Graph((3, 4, 4))
    x = g.add(layers.Conv2d(18, 3, padding=1))
    gate = g.add(layers.Softmax(), g.add(layers.GlobalAvgPool2d()))
    y = g.add(layers.Conv2d(18, 3, padding=1), gate)
    z = g.add(layers.Conv2d(18, 3, padding=1), "global_pool1")
    g.add(layers.Add(), g.add(layers.Mul(), x, gate), g.add(layers.Softmax(), y))
    g.add(layers.Mul(), "add1", z)
    return small.classified(g)


def before_activations() -> Graph:
    """Residuals whose branches end in what has weights: their gradient goes on to the addition's
    other input, and is added to there. Weights so large that threads share the filters, and affine
    ones."""
    g = Graph((3, 1, 2))
    x = g.add(layers.Conv2d(1030, 1), g.add(layers.Conv2d(4, 1)))
    y = g.add(layers.Conv2d(1030, 1, bias=False), g.add(layers.ReLU(), g.add(layers.BatchNorm())))
    g.add(layers.Flatten(), g.add(layers.GlobalAvgPool2d(), g.add(layers.Add(), y, x)))
    x = g.add(layers.Affine(17))
    y = g.add(layers.Affine(17), g.add(layers.SiLU(), g.add(layers.BatchNorm())))
    g.add(layers.Add(), y, x)
    return small.classified(g)


OWN = [
    *(partial(curve, function) for function in CURVES),
    *(slopes, excitation, dag, overlapping, one_pixel, pixel_softmax),
]


def name_of(make):
    return repr(make.args[0]) if isinstance(make, partial) else make.__name__


by_graph = pytest.mark.parametrize(
    "make", [*small.GRAPHS, *OWN, wide, before_activations], ids=name_of
)


@pytest.mark.parametrize("make", OWN, ids=name_of)
def test_the_oracle_knows_these_too(make, monkeypatch):
    monkeypatch.setattr(rules, "kernels", reference)
    small.check_against_differences(make)


@by_graph
def test_gradients_agree_with_the_oracle_in_float64(make, isa, monkeypatch):
    exact, x, targets = small.problem(make, np.float64, count=5)
    graph = make()
    params = {name: value.astype(np.float32) for name, value in exact.params.items()}
    step = CompiledStep(graph, params, SGD())
    result, grads = step.gradients(x.astype(np.float32), targets.astype(np.float32))
    monkeypatch.setattr(rules, "kernels", reference)
    expected, expected_grads = exact.gradients(x, targets)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert result.correct == expected.correct
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        scale = np.abs(expected_grads[name]).max()
        np.testing.assert_allclose(
            grad, expected_grads[name], rtol=1e-3, atol=1e-5 + 1e-4 * scale, err_msg=name
        )
    for name, value in step.params.items():
        np.testing.assert_allclose(value, exact.params[name], rtol=1e-4, atol=1e-5, err_msg=name)


NETWORKS = {
    "lenet": {},
    "simple_convnet": {},
    "deep_convnet": {"dropout": 0.3},
    "resnet20": {"blocks": 1},
    "mlp": {},
}


def batches(graph, counts, classes=10, seed=1):
    rng = np.random.default_rng(seed)
    for count in counts:
        x = rng.standard_normal((count, *graph.input_shape), np.float32)
        yield x, smoothed_targets(rng.integers(0, classes, count), classes, 0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_as_with_the_oracle(name):
    graph = architectures.build(name, **NETWORKS[name])
    params = graph.initialise(0)
    steps = [make(graph, params, SGD(), seed=5) for make in (LayerwiseStep, CompiledStep)]
    # A last batch that is smaller reuses the memory, a larger one gets more.
    for x, targets in batches(graph, (11, 4, 13)):
        expected, result = (step.step(x, targets, 0.005) for step in steps)
        assert result.loss == pytest.approx(expected.loss, rel=2e-4)
        assert result.correct == expected.correct
    for key, value in steps[1].params.items():
        # What moved is compared; a value near a bend may go the other way.
        wanted = steps[0].params[key]
        moved = np.abs(wanted - params[key]).max()
        assert np.abs(value - wanted).mean() <= 0.02 * moved + 1e-7, key


@pytest.mark.parametrize(
    ("make", "count"),
    [
        *product([dag, excitation, slopes], [1, 7, 40]),
        *((wide, 5), (wide, 140), (before_activations, 7)),
    ],
)
def test_the_same_bits_with_any_number_of_threads(make, count):
    graph = make()
    before = kernels.num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            step = CompiledStep(graph, graph.initialise(0), SGD(), seed=2)
            losses = [step.step(*batch, 0.01) for batch in batches(graph, (count, count), CLASSES)]
            found.append((losses, {name: value.tobytes() for name, value in step.params.items()}))
    finally:
        kernels.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_images_or_filters_whatever_threads_share_the_bits_are_the_same():
    graph = wide()
    found = []
    few, many = batches(graph, (5, 140), CLASSES)
    for first in (few, many):  # what comes first decides how the step is built
        step = CompiledStep(graph, graph.initialise(0), SGD())
        step.gradients(*first)
        kinds = Counter(step._trainer.kinds)
        assert kinds["conv_parts"] == kinds["conv_dx_parts"] == (2 if first is few else 0)
        assert kinds["conv_dw_parts"] == 2
        result, grads = step.gradients(*few)
        found.append((result, {name: grad.tobytes() for name, grad in grads.items()}))
    assert found[0] == found[1]


def test_a_step_for_many_images_shares_out_few_as_it_does_many():
    graph = wide()
    few, many = batches(graph, (5, 140), CLASSES)
    kinds = []
    for first, batch in ((many, 0), (few, 140), (few, 0)):
        step = CompiledStep(graph, graph.initialise(0), SGD(), batch=batch)
        step.gradients(*first)
        kinds.append(Counter(step._trainer.kinds))
    assert kinds[0] == kinds[1] != kinds[2]


@pytest.mark.parametrize("make_optimiser", [SGD, Adam])
def test_state_continues_bit_for_bit_whatever_batch_came_first(make_optimiser):
    graph = dag()
    whole = CompiledStep(graph, graph.initialise(0), make_optimiser(), seed=2)
    data = list(batches(graph, (20, 20, 9), CLASSES))
    for batch in data[:2]:
        whole.step(*batch, 0.01)
    arrays, values = whole.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    rest = CompiledStep(graph, graph.initialise(7), make_optimiser(), seed=2)
    rest.load_state(arrays, values)
    assert whole.step(*data[2], 0.01) == rest.step(*data[2], 0.01)
    for name, value in whole.params.items():
        assert value.tobytes() == rest.params[name].tobytes(), name


def test_parameters_and_gradients_are_flat_with_the_same_offsets():
    graph = architectures.build("lenet")
    params = graph.initialise(0)
    step = CompiledStep(graph, params, SGD())
    ((x, targets),) = batches(graph, (4,))
    _, grads = step.gradients(x, targets)
    assert step.flat_params.shape == step.flat_grads.shape
    for name, value in step.params.items():
        assert (value == params[name]).all()
        assert np.shares_memory(value, step.flat_params)
        start = (value.ctypes.data - step.flat_params.ctypes.data) // 4
        assert (step.flat_grads[start : start + value.size] == grads[name].ravel()).all()


RESNET = partial(architectures.build, "resnet20", blocks=1)


@pytest.mark.parametrize(
    ("make", "frozen"),
    [
        *product(
            [dag, excitation, slopes, wide, RESNET],
            ["conv*", "conv[2-9]", "bn*", "conv1", "affine*"],
        ),
        (slopes, "prelu*"),
        (slopes, "prelu[1-4]"),
    ],
)
def test_layers_that_do_not_learn_have_no_gradient(make, frozen):
    graph = make()
    params = graph.initialise(0)
    classes = graph.shape(next(iter(graph.outputs.values())))[0]
    ((x, targets),) = batches(graph, (4,), classes)
    whole = CompiledStep(graph, params, SGD())
    part = CompiledStep(graph, params, SGD(groups=[Group(frozen, lr=0.0)]))
    (loss, wanted), (found_loss, found) = (step.gradients(x, targets) for step in (whole, part))
    assert found_loss == loss
    assert found.keys() == {name for name in wanted if name not in matching(frozen, wanted)}
    for name, value in found.items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-4 * scale, err_msg=name)


def test_nothing_goes_back_below_the_lowest_layer_that_learns():
    graph = architectures.build("resnet20", blocks=1)
    params = graph.initialise(0)
    ((x, targets),) = batches(graph, (4,))

    def operations(frozen):
        groups = [Group(pattern, lr=0.0) for pattern in frozen]
        step = CompiledStep(graph, params, SGD(groups=groups))
        step.step(x, targets, 0.1)
        moved = {name for name, value in step.params.items() if (value != params[name]).any()}
        assert step._trainer is not None
        return Counter(step._trainer.kinds), moved

    every, _ = operations([])
    head, moved = operations(["conv*", "bn*"])
    assert {name for name in moved if "running" not in name} == {"affine1.weight", "affine1.bias"}
    assert not {"conv_dw", "conv_dx", "norm_dx", "affine_dx", "conv_reduce"} & head.keys()
    assert head["conv"] == every["conv"]
    assert head["affine_dw"] == 1
    below, _ = operations(["conv1", "bn1"])
    assert below["conv_dw"] == every["conv_dw"] - 1
    assert below["conv_dx"] == every["conv_dx"] - 1
    biases, moved = operations(["conv*", "bn*", "affine1.weight"])
    assert {name for name in moved if "running" not in name} == {"affine1.bias"}
    assert not any(kind.endswith("_dx") for kind in biases)


def test_an_overflow_shows_in_the_loss():
    graph = architectures.build("mlp", (1, 4, 4))
    step = CompiledStep(graph, graph.initialise(0), SGD())
    targets = smoothed_targets(np.zeros(2, np.int64), 10)
    assert not np.isfinite(step.step(np.full((2, 1, 4, 4), np.inf, np.float32), targets, 0.1).loss)


@pytest.mark.parametrize("make", [CompiledStep, LayerwiseStep])
def test_scores_of_one_pixel_are_refused(make):
    graph = Graph((3, 4, 4))
    graph.add(layers.GlobalAvgPool2d(), graph.add(layers.Conv2d(CLASSES, 1)))
    graph.add(layers.Softmax())
    with pytest.raises(ShapeError, match="one output of shape"):
        make(graph, graph.initialise(0), SGD())
    graph.add(layers.Flatten())
    with pytest.raises(ShapeError, match=r"after Flatten.*'softmax1' is before 'flatten1'"):
        make(graph, graph.initialise(0), SGD())
    graph = small.twice()
    graph.add(layers.Dropout(0.5))
    with pytest.raises(ShapeError, match=r"after Dropout.*'softmax1' is before 'dropout2'"):
        make(graph, graph.initialise(0), SGD())


def test_what_it_does_not_know_is_refused():
    g = Graph((1, 4, 4))
    g.add(layers.LRN(3))
    g = small.classified(g)
    assert not CompiledStep.supports(g)
    with pytest.raises(ShapeError, match="layer 'lrn1': lrn is for inference only"):
        CompiledStep(g, g.initialise(0), SGD())
    g.set_output("affine1", "a")
    g.set_output("softmax1", "b")
    with pytest.raises(ShapeError, match="one output of shape"):
        CompiledStep(g, g.initialise(0), SGD())


def test_the_documentation_names_what_can_not_be_trained():
    page = Path(__file__).parents[2] / "docs" / "operators.md"
    text = page.read_text(encoding="utf-8")
    told = re.search(r"Training knows all of them but (.*?),\s+whose names", text, re.DOTALL)
    known = {op.op for op in TRAINABLE}
    assert known == {op.op for op in rules.RULES}
    every = set(re.findall("`([a-z0-9_]+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", text))))
    assert known < every
    assert every - known == set(re.findall("`([a-z_]+)`", told[1]))


def test_a_run_takes_the_step_that_it_is_told():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (12, 1, 4, 4), np.uint8), np.arange(12) % CLASSES)
    data = build("noise", split, None, ("a", "b", "c"), validation=None, seed=0)
    g = Graph((1, 4, 4))
    g.add(layers.Conv2d(3, 3))
    settings = {"epochs": 1, "batch_size": 5, "shift": 0}
    g = small.classified(g)
    losses = {
        step: train(g, data, step=step, **settings).history[0].loss
        for step in ("auto", "compiled", "layerwise")
    }
    assert losses["auto"] == losses["compiled"]
    assert losses["layerwise"] == pytest.approx(losses["auto"], rel=1e-4)
    with pytest.raises(TrainingError, match="step must be one of auto, compiled, layerwise"):
        TrainConfig(step="fast")
