"""Results that the kernel of the last layer stores as NCHW itself."""

from __future__ import annotations

import graph_reference
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from convserve.graph import Graph, layers
from convserve.plan import Plan, compile_plan
from convserve.plan import compile as compiler

ACTIVATIONS = [layers.ReLU(), layers.SiLU(), layers.LeakyReLU(0.1)]


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """Whatever can store a result as NCHW, behind a convolution or on the input itself."""
    height, width = draw(st.integers(1, 19)), draw(st.integers(2, 70))
    channels = draw(st.sampled_from([1, 3, 8, 17, 32, 40]))
    graph = Graph((channels, height, width))
    last = graph.input_name
    if draw(st.booleans()):
        last = graph.add(layers.Conv2d(draw(st.sampled_from([5, 16, 35])), 1))
    channels = graph.shape(last)[0]
    kind = draw(st.sampled_from([*["conv"] * 3, "depthwise", "pool", "add", "pad", "norm"]))
    size, stride = draw(st.sampled_from([1, 3, 3, 5])), draw(st.sampled_from([1, 1, 2]))
    if kind == "conv":
        filters = draw(st.sampled_from([1, 6, 8, 16, 31, 40, 66]))
        op = layers.Conv2d(filters, size, stride, size // 2, rounding="floor")
        made = graph.add(op, last)
        if draw(st.booleans()):
            op = layers.Conv2d(filters, 1, stride, rounding="floor")
            made = graph.add(layers.Add(), made, graph.add(op, last))
    elif kind == "depthwise":
        assume(channels > 1)
        op = layers.Conv2d(channels, size, stride, size // 2, groups=channels, rounding="floor")
        made = graph.add(op, last)
    elif kind == "pool":
        pool = draw(st.sampled_from([layers.MaxPool2d, layers.AvgPool2d]))
        window = draw(st.sampled_from([2, 3]))
        made = graph.add(pool(window, stride, 1, "floor"), last)
    elif kind == "add":
        made = graph.add(layers.Add(), last, graph.add(layers.Conv2d(channels, 1), last))
        made = graph.add(layers.Sub(), made, last)
    elif kind == "pad":
        made = graph.add(layers.Pad(((1, 2), (0, 3)), 0.5), last)
    else:
        made = graph.add(layers.ScaleShift(), last)
    if draw(st.booleans()):
        made = graph.add(draw(st.sampled_from(ACTIVATIONS)), made)
    return graph


def compiled(graph: Graph, rng: np.random.Generator) -> tuple[Plan, dict[str, np.ndarray]]:
    params = {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in graph.initialise(rng).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler._Compiler, "work", lambda self: 1e9)  # so that threads share it
        return compile_plan(graph, params), params


@given(graph=networks(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stored_as_nchw(isa: str, graph: Graph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan, params = compiled(graph, rng)
    x = rng.standard_normal((3, *graph.input_shape)).astype(np.float32)
    result = plan.run(x)[0]
    name = graph.nodes[-1].name
    expected = graph_reference.evaluate(graph, params, x)[name]
    bound = graph_reference.error_bounds(graph, params, x)[name]
    reference.assert_close(result, expected, bound, graph=graph.to_dict())
    assert plan.run(x[:0])[0].shape == (0, *graph.shape(name))
    for _ in range(2):  # alone, then shared
        for i in range(len(x)):
            reference.assert_same_bits(plan.run(x[i : i + 1].copy(), 2)[0], result[i : i + 1])
    # the same bits as a copy, which it is where another layer reads it
    graph.add(layers.ReLU(), name)
    both = compile_plan(graph, params, [name, graph.nodes[-1].name]).run(x)
    reference.assert_same_bits(both[0], result)


def test_no_copy_is_left() -> None:
    graph = Graph((3, 20, 20))
    for size in (3, 3, 5):
        graph.add(layers.Conv2d(16, size, padding=size // 2))
        graph.add(layers.ReLU())
    params = graph.initialise(0)
    assert [part.name for part in compile_plan(graph, params).parts][-1] == "relu3"
    # conv2 is read by the next layer, relu3 is asked for twice: both are copied
    parts = compile_plan(graph, params, ["relu2", "relu3", "relu3"]).parts
    assert [part.name for part in parts][-3:] == ["output"] * 3


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("width", [48, 50])
def test_results_larger_than_the_caches(isa: str, size: int, width: int) -> None:
    graph = Graph((3, 40, width))
    graph.add(layers.Conv2d(40, size, padding=size // 2))
    rng = np.random.default_rng(0)
    plan, _ = compiled(graph, rng)
    x = rng.standard_normal((30, 3, 40, width)).astype(np.float32)
    many = plan.run(x, 2)[0]
    assert many.nbytes > 8 << 20
    for i in (0, 17, 29):
        reference.assert_same_bits(plan.run(x[i : i + 1].copy())[0], many[i : i + 1])


def test_the_memory_of_large_results_is_used_again() -> None:
    graph = Graph((3, 64, 64))
    graph.add(layers.Conv2d(40, 1))
    rng = np.random.default_rng(0)
    plan, _ = compiled(graph, rng)
    x = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
    first = plan.run(x)[0]
    assert first.flags.writeable and first.flags.c_contiguous
    kept, place = first.copy(), first.ctypes.data
    view = first[1:]
    del first
    second = plan.run(2 * x)[0]
    assert second.ctypes.data != place  # the view still holds it
    reference.assert_same_bits(view, kept[1:])
    del view
    third = plan.run(x)[0]
    assert third.ctypes.data == place
    reference.assert_same_bits(third, kept)
    small = plan.run(x[:1])[0]
    assert small.shape == (1, 40, 64, 64)
    reference.assert_same_bits(small, kept[:1])
    outlives = plan.run(x)[0]
    del plan
    reference.assert_same_bits(outlives, kept)
