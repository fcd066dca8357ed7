"""Convolutions that pool before they store, by each of the kernels that can do it."""

from __future__ import annotations

import graph_reference
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from convserve.graph import Graph, layers
from convserve.plan import compile as compiler
from convserve.plan import compile_plan

WINDOWS = [(2, 2, 0), (2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (2, 3, 0), (5, 2, 2), (1, 2, 0)]


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """conv -> (add) -> activation -> pool, over images wide enough for vectors of pixels."""
    shape = (
        draw(st.sampled_from([1, 3, 5, 8, 20])),
        draw(st.integers(3, 20)),
        draw(st.integers(3, 45)),
    )
    graph = Graph(shape)
    size, stride = draw(st.sampled_from([1, 3, 3, 5])), draw(st.sampled_from([1, 1, 1, 2]))
    filters = draw(st.sampled_from([1, 5, 6, 8, 13, 16, 31, 40]))

    def conv(size: int) -> str:
        op = layers.Conv2d(filters, size, stride, size // 2, rounding="floor")
        return graph.add(op, graph.input_name)

    last = graph.add(layers.Add(), conv(1), conv(size)) if draw(st.booleans()) else conv(size)
    activation = draw(st.sampled_from([None, layers.ReLU(), layers.SiLU(), layers.LeakyReLU(0.1)]))
    if activation is not None:
        last = graph.add(activation, last)
    kind = draw(st.sampled_from([layers.MaxPool2d, layers.MaxPool2d, layers.AvgPool2d]))
    rounding = draw(st.sampled_from(["floor", "ceil"]))
    window, step, padding = draw(st.sampled_from(WINDOWS))
    assume(min(graph.shape(last)[1:]) + 2 * padding >= window)
    graph.add(kind(window, step, padding, rounding), last)
    return graph


@given(graph=networks(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pooled_on_store(isa: str, graph: Graph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    params = {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in graph.initialise(rng).items()
    }
    x = rng.standard_normal((3, *graph.input_shape)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler._Compiler, "work", lambda self: 1e9)  # so that threads share it
        plan = compile_plan(graph, params)
    result = plan.run(x)[0]
    name = graph.nodes[-1].name
    expected = graph_reference.evaluate(graph, params, x)[name]
    bound = graph_reference.error_bounds(graph, params, x)[name]
    reference.assert_close(result, expected, bound, graph=graph.to_dict())
    for _ in range(2):  # alone, then shared
        for i in range(len(x)):
            reference.assert_same_bits(plan.run(x[i : i + 1].copy(), 2)[0], result[i : i + 1])


def test_what_is_pooled_on_store() -> None:
    graph = Graph((3, 32, 32))
    for filters in (6, 16, 24):
        graph.add(layers.Conv2d(filters, 3, padding=1))
        graph.add(layers.ReLU())
        graph.add(layers.MaxPool2d(2))
    plan = compile_plan(graph, graph.initialise(np.random.default_rng(0)))
    assert [len(step.nodes) for step in plan.steps.steps] == [3, 3, 3]
