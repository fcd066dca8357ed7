"""Plans against the naive evaluation of their graph: random graphs, every instruction set."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import graph_reference
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.errors import ConvserveError, UnknownNameError
from convserve.graph import Graph, architectures, layers
from convserve.kernels import _core
from convserve.plan import compile_plan
from convserve.plan.memory import Extent, place


def random_parameters(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    params = graph.initialise(rng)
    for name, value in params.items():
        if value.ndim == 1:
            params[name] = (value + rng.random(value.shape)).astype(np.float32)
    return params


@st.composite
def graphs(draw: st.DrawFn, kind_seed: int) -> Graph:
    """A random DAG of every operator; layers that would not fit are left out.

    Which operators is up to `kind_seed`: Hypothesis would try a few of them again and again.
    """
    shape = tuple(draw(st.integers(1, high)) for high in (20, 9, 9))
    graph = Graph(shape)  # type: ignore[arg-type]
    names = [graph.input_name]
    small, pair = st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))
    padding = st.tuples(st.tuples(*[st.integers(0, 2)] * 2), st.tuples(*[st.integers(0, 2)] * 2))
    kinds = np.random.default_rng(kind_seed)
    for _ in range(draw(st.integers(1, 9))):
        source = draw(st.sampled_from(names[-3:]))
        channels = graph.shape(source)[0]
        kind = kinds.choice([*sorted(layers.operators()), *["squeeze", "conv2d", "flatten"] * 2])
        if kind in ("affine", "softmax", "log_softmax") and len(graph.shape(source)) > 1:
            source = graph.add(layers.Flatten(), source)
        inputs = [source]
        try:
            match kind:
                case "conv2d":
                    groups = draw(
                        st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0])
                    )
                    filters = groups * draw(st.integers(1, 20 if groups == 1 else 3))
                    op = layers.Conv2d(
                        filters,
                        draw(pair),
                        draw(pair),
                        draw(padding),
                        draw(small),
                        groups,
                        draw(st.booleans()),
                        "floor",
                    )
                case "max_pool2d" | "avg_pool2d":
                    rounding = draw(st.sampled_from(["floor", "ceil"]))
                    op = layers.operators()[kind](draw(pair), draw(pair), draw(padding), rounding)
                    if kind == "avg_pool2d" and draw(st.booleans()):
                        op = layers.AvgPool2d(op.size, op.stride, op.padding, rounding, False)
                case "affine":
                    op = layers.Affine(draw(st.integers(1, 40)), draw(st.booleans()))
                case "add" | "sub" | "concat":
                    inputs.append(draw(st.sampled_from(names)))
                    op = layers.operators()[kind]()
                case "mul":
                    # values may grow with every product
                    bounded = [name for name in names if name.startswith(("sigmoid", "tanh"))]
                    inputs.append(draw(st.sampled_from(bounded or names[:1])))
                    op = layers.Mul()
                case "leaky_relu" | "elu":
                    op = layers.operators()[kind](draw(st.floats(-2, 2)))
                case "clip":
                    bounds = st.none() | st.floats(0, 2)
                    low, high = draw(bounds), draw(bounds)
                    op = layers.Clip(None if low is None else -low, high)
                case "hard_sigmoid":
                    op = layers.HardSigmoid(draw(st.floats(-1, 1)), draw(st.floats(-1, 1)))
                case "gelu":
                    op = layers.GELU(draw(st.sampled_from(["none", "tanh"])))
                case "slice":
                    start = draw(st.integers(0, channels - 1))
                    op = layers.Slice(start, draw(st.integers(start + 1, channels)))
                case "channel_shuffle":
                    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
                    op = layers.ChannelShuffle(draw(st.sampled_from(divisors)))
                case "pad":
                    op = layers.Pad(draw(padding), draw(st.sampled_from([0.0, 0.0, -1.5])))
                case "crop":
                    op = layers.Crop(draw(padding))
                case "lrn":
                    size, alpha = draw(st.integers(1, 40)), draw(st.floats(0, 2))
                    op = layers.LRN(size, alpha, draw(st.floats(-1, 2)), draw(st.floats(0.5, 2)))
                case "layer_norm":
                    # where all values of a pixel are about equal, rounding is all that is left
                    op = layers.LayerNorm(draw(st.sampled_from([0.1, 1.0])))
                case "squeeze":
                    op = layers.Sigmoid()
                    inputs = [graph.add(layers.GlobalAvgPool2d(), source)]
                    gate = graph.add(layers.Conv2d(channels, 1), *inputs)
                    inputs = [graph.add(op, gate), source][:: draw(st.sampled_from([1, -1]))]
                    op = draw(st.sampled_from([layers.Mul(), layers.Add(), layers.Sub()]))
                case _:
                    op = layers.operators()[kind]()
            names.append(graph.add(op, *inputs))
        except (ConvserveError, TypeError):
            continue
    if not graph.nodes:
        graph.add(layers.ReLU())
    return graph


@pytest.mark.parametrize("kind_seed", range(40))
@settings(max_examples=6)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.data())
def test_random_graphs(kind_seed, n, seed, data):
    graph = data.draw(graphs(kind_seed))
    rng = np.random.default_rng(seed)
    params = random_parameters(graph, rng)
    x = rng.standard_normal((n, *graph.input_shape)).astype(np.float32)
    names = [graph.input_name, *(node.name for node in graph.nodes)]
    asked = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    expected = graph_reference.evaluate(graph, params, x)
    bounds = graph_reference.error_bounds(graph, params, x)
    before = _core.isa()
    try:
        for isa in _core.available_isas():
            _core.use_isa(isa)
            for outputs in (None, asked):
                plan = compile_plan(graph, params, outputs)
                results = plan.run(x, 1)
                for name, result in zip(outputs or graph.outputs.values(), results, strict=True):
                    reference.assert_close(
                        result,
                        expected[name],
                        bounds[name],
                        isa=isa,
                        name=name,
                        graph=graph.to_dict(),
                    )
                for result, again in zip(results, plan.run(x, 2), strict=True):
                    reference.assert_same_bits(again, result, isa=isa)
                for result, alone in zip(results, plan.run(x[-1:], 1), strict=True):
                    reference.assert_same_bits(alone, result[-1:], isa=isa)
    finally:
        _core.use_isa(before)


@pytest.mark.parametrize("name", architectures.names())
def test_architectures(isa, name):
    graph = architectures.build(name)
    rng = np.random.default_rng(0)
    params = graph.initialise(rng)
    x = rng.standard_normal((2, *graph.input_shape)).astype(np.float32)
    logits, output = graph.resolve("logits"), graph.outputs["output"]
    found = compile_plan(graph, params, [logits, output]).run(x)
    expected = graph_reference.evaluate(graph, params, x)
    # what the field allows between engines
    for name, result in zip((logits, output), found, strict=True):
        allowed = 1e-5 * np.abs(expected[name]).max()
        reference.assert_close(result, expected[name], allowed, isa=isa, name=name)


@settings(max_examples=60)
@given(
    channels=st.integers(16, 50),
    filters=st.integers(16, 70),
    size=st.tuples(st.integers(4, 15), st.integers(4, 15)),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    n=st.integers(1, 4),
    residual=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_winograd_convolutions(channels, filters, size, padding, n, residual, seed):
    """3 x 3 filters of stride 1: odd sizes, any padding, many images, on each instruction set."""
    if residual:
        padding, filters = ((1, 1), (1, 1)), channels
    graph = Graph((channels, *size))
    first = graph.add(layers.Conv2d(channels, 1), name="first")
    graph.add(layers.Conv2d(filters, 3, padding=padding), name="conv")
    if residual:
        graph.add(layers.Add(), "conv", first)
    graph.add(layers.ReLU(), name="last")
    rng = np.random.default_rng(seed)
    params = random_parameters(graph, rng)
    x = rng.standard_normal((n, channels, *size)).astype(np.float32)
    expected = graph_reference.evaluate(graph, params, x)["last"]
    before = _core.isa()
    try:
        for isa in _core.available_isas():
            _core.use_isa(isa)
            plan = compile_plan(graph, params)
            (result,) = plan.run(x, 1)
            allowed = 1e-5 * np.abs(expected).max()
            reference.assert_close(result, expected, allowed, isa=isa, size=size)
            for threads in (2, 3, 5):
                reference.assert_same_bits(plan.run(x, threads)[0], result, threads=threads)
    finally:
        _core.use_isa(before)


@pytest.mark.parametrize("name", ["lenet", "resnet20", "mlp"])
def test_an_image_has_the_same_bits_in_any_batch(isa, name):
    graph = architectures.build(name)
    rng = np.random.default_rng(1)
    plan = compile_plan(graph, random_parameters(graph, rng))
    x = rng.standard_normal((70, *graph.input_shape)).astype(np.float32)
    (whole,) = plan.run(x, 2)
    for first, end in ((0, 1), (3, 4), (0, 2), (1, 34), (5, 70), (69, 70)):
        for threads in (1, 2, 3):
            (part,) = plan.run(x[first:end].copy(), threads)
            reference.assert_same_bits(part, whole[first:end], part=(first, end), threads=threads)


def test_no_image_and_no_result():
    plan = compile_plan(architectures.build("lenet"), architectures.build("lenet").initialise(0))
    (result,) = plan.run(np.empty((0, 1, 28, 28), np.float32), 2)
    assert result.shape == (0, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_image_leaves_its_neighbours_alone(isa, bad):
    graph = architectures.build("resnet20")
    rng = np.random.default_rng(2)
    plan = compile_plan(graph, random_parameters(graph, rng))
    x = rng.standard_normal((4, *graph.input_shape)).astype(np.float32)
    (clean,) = plan.run(x)
    x[2, 1, 7, 7] = bad
    (result,) = plan.run(x)
    assert np.isnan(result[2]).all()
    kept = [0, 1, 3]
    reference.assert_same_bits(result[kept], clean[kept])


def test_fusion_makes_few_steps_and_keeps_what_is_asked_for():
    graph = architectures.build("resnet20")
    params = graph.initialise(0)
    fused = compile_plan(graph, params)
    kinds = [step.op.op for step in fused.steps.steps]
    # 19 convolutions of 3x3, 2 of 1x1 in the shortcuts; batch norm, ReLU and add are in them
    assert sorted(set(kinds)) == ["affine", "conv2d", "global_avg_pool2d", "softmax"]
    assert kinds.count("conv2d") == 21
    norm = next(node.name for node in graph.nodes if node.op.op == "batch_norm")
    asked = compile_plan(graph, params, [norm, "logits"])
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = graph_reference.evaluate(graph, params, x)
    bounds = graph_reference.error_bounds(graph, params, x)
    values = asked.run(x)
    for name, value in zip((norm, graph.resolve("logits")), values, strict=True):
        reference.assert_close(value, expected[name], bounds[name], name=name)


def test_many_threads_may_run_one_plan():
    graph = architectures.build("deep_convnet")
    rng = np.random.default_rng(3)
    plan = compile_plan(graph, random_parameters(graph, rng))
    inputs = [rng.standard_normal((n, 1, 28, 28)).astype(np.float32) for n in (1, 7, 33, 64)]
    expected = [plan.run(x, 1)[0] for x in inputs]

    def call(i: int) -> bool:
        return bool((plan.run(inputs[i % 4], 1 + i % 3)[0] == expected[i % 4]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(200)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_child_has_threads_of_its_own():
    graph = architectures.build("deep_convnet")
    plan = compile_plan(graph, graph.initialise(0))
    x = np.ones((64, 1, 28, 28), np.float32)
    (expected,) = plan.run(x, 2)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if (plan.run(x, 2)[0] == expected).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_unknown_outputs_are_named():
    graph = architectures.build("lenet")
    with pytest.raises(UnknownNameError, match=r"conv9.*conv1"):
        compile_plan(graph, graph.initialise(0), ["conv9"])


@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.integers(0, 12), st.integers(0, 6)),
        min_size=1,
        max_size=20,
    )
)
def test_tensors_alive_at_a_time_do_not_overlap(rows):
    extents = {i: Extent(size, at, at + length) for i, (size, at, length) in enumerate(rows)}
    offsets = place(extents)
    for i, a in extents.items():
        assert offsets[i] % 16 == 0
        for j, b in extents.items():
            if i < j and a.first <= b.last and b.first <= a.last:
                assert offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
