"""Each operator on awkward shapes: by its definition, alone, in a batch, shared by threads."""

from __future__ import annotations

from collections.abc import Callable

import graph_reference
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from convserve.graph import Graph, layers
from convserve.plan import Plan, compile_plan
from convserve.plan import compile as compiler

ACTIVATIONS = [
    layers.ReLU(), layers.LeakyReLU(0.2), layers.Clip(), layers.Clip(-1.0, None), layers.Sigmoid(),
    layers.HardSigmoid(), layers.HardSwish(), layers.SiLU(), layers.GELU(), layers.GELU("tanh"),
    layers.Tanh(), layers.ELU(0.7),
]  # fmt: skip
ONE_INPUT = [
    *ACTIVATIONS, layers.PReLU(), layers.ScaleShift(), layers.BatchNorm(), layers.LayerNorm(),
    layers.LRN(5), layers.LRN(4, 0.5, 0.6, 2.0), layers.LRN(70, 1.0), layers.GlobalMaxPool2d(),
    layers.GlobalAvgPool2d(), layers.Pad(((1, 0), (2, 3)), -2.0), layers.Pad(1),
    layers.Crop(((0, 1), (2, 0))), layers.Slice(0, 1), layers.Flatten(),
]  # fmt: skip
SHAPES = [(1, 5, 7), (5, 3, 3), (16, 4, 5), (17, 3, 4), (40, 6, 5), (64, 2, 9)]


@pytest.fixture(autouse=True)
def threads_for_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every layer were large, so that threads share it."""
    monkeypatch.setattr(compiler._Compiler, "work", lambda self: 1e9)


def parameters(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    params = graph.initialise(rng)
    for name, value in params.items():
        if value.ndim == 1:
            params[name] = (value + rng.random(value.shape)).astype(np.float32)
    return params


def check(graph: Graph, outputs: list[str] | None = None) -> Plan:
    """The plan is right, and the same bits in any batch and for any number of threads."""
    rng = np.random.default_rng(len(graph.nodes))
    params = parameters(graph, rng)
    x = (3 * rng.standard_normal((5, *graph.input_shape))).astype(np.float32)
    plan = compile_plan(graph, params, outputs)
    results = plan.run(x, 1)
    expected = graph_reference.evaluate(graph, params, x)
    bounds = graph_reference.error_bounds(graph, params, x)
    for name, result in zip(outputs or graph.outputs.values(), results, strict=True):
        reference.assert_close(
            result, expected[name], bounds[name], name=name, graph=graph.to_dict()
        )
    for threads in (2, 3):
        for again, result in zip(plan.run(x, threads), results, strict=True):
            reference.assert_same_bits(again, result, threads=threads)
        # The first of these runs alone and is timed, the next ones are shared.
        for _ in range(4):
            for again, result in zip(plan.run(x[2:3].copy(), threads), results, strict=True):
                reference.assert_same_bits(again, result[2:3], threads=threads)
    bad = x.copy()
    bad[1, 0, 0, 0] = np.nan
    bad[3, -1, -1, -1] = np.inf
    for found, clean in zip(plan.run(bad, 1), results, strict=True):
        reference.assert_same_bits(found[[0, 2, 4]], clean[[0, 2, 4]])
    return plan


@pytest.mark.parametrize("op", ONE_INPUT, ids=str)
def test_operators_of_one_input(isa: str, op: layers.Operator) -> None:
    for shape in SHAPES:
        graph = Graph(shape)
        graph.add(op)
        check(graph)
        if op.op in ("global_max_pool2d", "global_avg_pool2d", "pad", "crop", "lrn"):
            continue
        flat = Graph(shape)
        flat.add(layers.Flatten())
        flat.add(op)
        check(flat)


@pytest.mark.parametrize("op", [layers.Add(), layers.Sub(), layers.Mul()], ids=str)
def test_operators_of_two_inputs(isa: str, op: layers.Operator) -> None:
    for shape in SHAPES:
        graph = Graph(shape)
        a = graph.add(layers.Conv2d(shape[0], 1), graph.input_name)
        b = graph.add(layers.Sigmoid(), graph.input_name)
        squeezed = graph.add(layers.GlobalAvgPool2d(), b)
        graph.add(layers.Conv2d(shape[0], 3, padding=1), squeezed)  # a halo around one pixel
        for inputs in ((a, b), (b, a), (a, squeezed), (squeezed, a), (a, a)):
            graph.set_output(graph.add(op, *inputs), f"out{len(graph.nodes)}")
        check(graph)


@pytest.mark.parametrize("channels", [(16, 16), (3, 20, 5), (32, 1, 16, 7), (64, 64)])
def test_concat_slice_and_shuffle(isa: str, channels: tuple[int, ...]) -> None:
    graph = Graph((sum(channels), 3, 5))
    total, parts, start = sum(channels), [], 0
    for width in channels:
        parts.append(graph.add(layers.Slice(start, start + width), graph.input_name))
        start += width
    joined = graph.add(layers.Concat(), *reversed(parts), parts[0])
    for groups in (1, 2, 4, total):
        if total % groups == 0:
            shuffled = graph.add(layers.ChannelShuffle(groups), graph.input_name)
            graph.set_output(shuffled, f"shuffle{groups}")
    graph.set_output(joined, "joined")
    graph.add(layers.Flatten(), joined)
    flat = graph.add(layers.Slice(1, 10))
    graph.set_output(graph.add(layers.Concat(), flat, "flatten1"), "flat")
    check(graph)


@pytest.mark.parametrize("classes", [1, 4, 10, 33, 1000])
def test_softmax_and_its_logarithm(isa: str, classes: int) -> None:
    graph = Graph((classes, 2, 2))
    pooled = graph.add(layers.GlobalAvgPool2d())
    graph.add(layers.Flatten())
    scores = graph.add(layers.Softmax(), "flatten1")
    logs = graph.add(layers.LogSoftmax(), "flatten1")
    graph.add(layers.Conv2d(3, 3, padding=1), pooled)  # so that the pooled image has a halo
    graph.set_output(scores, "scores")
    graph.set_output(logs, "logs")
    graph.set_output("conv1", "conv")
    check(graph)


@pytest.mark.parametrize("op", [layers.Softmax(), layers.LogSoftmax()], ids=str)
@pytest.mark.parametrize("classes", [1, 3, 10, 17, 33, 1000])
def test_softmax_of_one_pixel(isa: str, classes: int, op: layers.Operator) -> None:
    few = min(classes, 33)
    for padded in ("", "pooled", "scores", "both"):  # what has a halo around the one pixel
        graph = Graph((classes, 2, 3))
        pooled = graph.add(layers.GlobalAvgPool2d())
        scores = graph.add(op)
        graph.set_output(scores, "scores")
        if padded in ("pooled", "both"):
            graph.set_output(graph.add(layers.Conv2d(3, 3, padding=1), pooled), "of_pooled")
        if padded in ("scores", "both"):
            graph.set_output(graph.add(layers.Conv2d(few, 3, padding=1), scores), "conv")
            graph.set_output(graph.add(layers.Conv2d(18, (1, 5), padding=2), scores), "wide")
        for name, reader in {
            "row": layers.Flatten(), "affine": layers.Affine(5), "sigmoid": layers.Sigmoid(),
            "again": op, "slice": layers.Slice(0, few), "norm": layers.ScaleShift(),
        }.items():  # fmt: skip
            x = graph.add(layers.Flatten(), scores) if name == "affine" else scores
            graph.set_output(graph.add(reader, x), name)
        graph.set_output(graph.add(layers.Mul(), graph.input_name, scores), "gated")
        graph.set_output(graph.add(layers.Add(), pooled, scores), "sum")
        graph.set_output(graph.add(layers.Concat(), scores, pooled, scores), "joined")
        check(graph)
        check(graph, [scores])
        check(graph, ["sigmoid1", scores, pooled])


@st.composite
def pixel_networks(draw: st.DrawFn) -> Graph:
    """Softmax among other layers of one pixel, in any order, with any readers and outputs."""
    graph = Graph((draw(st.sampled_from([1, 3, 10, 17, 40])), 2, 3))
    names = [graph.add(layers.GlobalAvgPool2d())]
    for _ in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(names[-4:]))
        shape = graph.shape(x)
        alike = [name for name in names if graph.shape(name) == shape]
        softmax = [layers.Softmax(), layers.LogSoftmax()]
        ops = [*softmax, *softmax, layers.Sigmoid(), layers.ScaleShift(), layers.Concat()]
        if len(shape) == 3:
            size = draw(st.sampled_from([1, 3]))
            ops += [layers.Conv2d(draw(st.sampled_from([5, 17, 32])), size, padding=size // 2)] * 2
            ops += [layers.Flatten()]
        else:
            ops += [layers.Affine(18)]
        ops += [layers.Add(), layers.Slice(0, draw(st.integers(1, shape[0])))]
        op = draw(st.sampled_from(ops))
        more = [draw(st.sampled_from(alike))] if op.arity != 1 else []
        names.append(graph.add(op, x, *more))
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)):
        graph.set_output(name, f"out_{name}")
    return graph


@given(graph=pixel_networks())
def test_softmax_among_any_layers_of_one_pixel(isa: str, graph: Graph) -> None:
    check(graph)


@pytest.mark.parametrize("op", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        lambda c: layers.Conv2d(20, 1),
        lambda c: layers.Conv2d(20, 3, padding=1),  # Winograd
        lambda c: layers.Conv2d(c, 3, padding=1, groups=c),
        lambda c: layers.Conv2d(2 * c, 3, 2, groups=2, rounding="floor"),
        lambda c: layers.Affine(19),
        lambda c: layers.ScaleShift(),
    ],
    ids=["direct", "winograd", "depthwise", "grouped", "affine", "scale_shift"],
)
def test_activations_are_fused(
    isa: str, op: layers.Operator, layer: Callable[[int], layers.Operator]
) -> None:
    for channels in (2, 24):  # the first is read as NCHW
        graph = Graph((channels, 6, 7))
        if isinstance(layer(channels), layers.Affine):
            graph.add(layers.Flatten())
        graph.add(layer(channels))
        graph.add(op)
        assert len(check(graph).steps.steps) == 1


def test_activations_are_fused_behind_a_residual(isa: str) -> None:
    for op in ACTIVATIONS:
        graph = Graph((24, 6, 7))
        first = graph.add(layers.Conv2d(24, 1))
        graph.add(layers.Conv2d(24, 3, padding=1))
        graph.add(layers.Add(), "conv2", first)
        graph.add(op)
        assert len(check(graph).steps.steps) == 2


def test_a_sum_with_one_pixel_is_no_residual() -> None:
    graph = Graph((24, 6, 7))
    graph.add(layers.GlobalMaxPool2d())
    graph.add(layers.Conv2d(24, 1), graph.input_name)
    graph.add(layers.Add(), "conv1", "global_pool1")
    assert [step.op.op for step in check(graph).steps.steps] == [
        "global_max_pool2d", "conv2d", "add",
    ]  # fmt: skip


def test_scalings_are_folded_into_weights() -> None:
    graph = Graph((12, 6, 6))
    graph.add(layers.Conv2d(20, 3, bias=False))
    graph.add(layers.BatchNorm())
    graph.add(layers.ScaleShift())
    graph.add(layers.SiLU())
    graph.add(layers.ScaleShift())
    graph.add(layers.BatchNorm())
    graph.add(layers.Flatten())
    graph.add(layers.Affine(7))
    graph.add(layers.ScaleShift())
    graph.add(layers.Clip())
    assert [step.op.op for step in check(graph).steps.steps] == ["conv2d", "scale_shift", "affine"]


def test_padding_with_zeros_joins_the_convolutions_own() -> None:
    graph = Graph((12, 6, 6))
    padded = graph.add(layers.Pad(((0, 1), (2, 1))))
    graph.add(layers.Conv2d(20, 3, padding=1), padded)
    graph.add(layers.Conv2d(12, 3, groups=12, rounding="floor", stride=2), padded)
    graph.set_output("conv1", "a")
    graph.set_output("conv2", "b")
    assert [step.op.op for step in check(graph).steps.steps] == ["conv2d", "conv2d"]
    # asked for, it is made
    assert check(graph, ["pad1", "conv1"]).steps.steps[0].op.op == "pad"
    other = Graph((12, 6, 6))
    other.add(layers.Pad(1, 0.5))
    other.add(layers.Conv2d(20, 3))
    assert [step.op.op for step in check(other).steps.steps] == ["pad", "conv2d"]
