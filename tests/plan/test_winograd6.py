"""F(6, 3): the largest Winograd tiles, for large maps of few channels."""

from __future__ import annotations

import graph_reference
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convserve.graph import Graph, layers
from convserve.plan import Choice, Plan, abilities, compile_plan


def kernels(plan: Plan) -> list[str]:
    return [part.kernel.name for part in plan.parts if part.macs]


@given(
    channels=st.integers(8, 40),
    filters=st.integers(8, 48),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    then=st.sampled_from(["add", "pool", "copy", "nothing"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_size(
    isa: str, channels: int, filters: int, size: tuple[int, int], then: str, seed: int
) -> None:
    graph = Graph((channels, *size))
    first = graph.add(layers.Conv2d(filters, 1))
    last = graph.add(layers.Conv2d(filters, 3, padding=1), first)
    if then == "add":
        last = graph.add(layers.Add(), last, first)
    last = graph.add(layers.SiLU(), last)
    if then == "pool":
        last = graph.add(layers.MaxPool2d(2, rounding="floor"), last)
    if then == "copy":
        last = graph.add(layers.Conv2d(5, 1), last)
    rng = np.random.default_rng(seed)
    params = {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in graph.initialise(rng).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abilities, "WINOGRAD6_PIXELS", 1)
        plan = compile_plan(graph, params, choice=Choice(kernel="winograd6"))
    assert "winograd6" in kernels(plan)
    x = rng.standard_normal((3, *graph.input_shape)).astype(np.float32)
    result = plan.run(x)[0]
    expected = graph_reference.evaluate(graph, params, x)[last]
    reference.assert_close(result, expected, 5e-5 * np.abs(expected).max(), graph=graph.to_dict())
    for i in range(3):
        reference.assert_same_bits(plan.run(x[i : i + 1].copy(), 2)[0], result[i : i + 1])


def test_where_it_is_considered(isa: str) -> None:
    def asked_for(channels: int, filters: int, size: int) -> str:
        graph = Graph((channels, size, size))
        graph.add(layers.Conv2d(filters, 3, padding=1))
        params = graph.initialise(0)
        return kernels(compile_plan(graph, params, choice=Choice(kernel="winograd6")))[0]

    assert asked_for(32, 48, 36) == "winograd6"
    for other in ((32, 32, 35), (56, 32, 48), (32, 56, 48), (32, 4, 48)):
        assert asked_for(*other) != "winograd6"


def test_it_is_taken_only_where_it_was_measured_and_a_deep_network_stays_exact(isa: str) -> None:
    graph = Graph((16, 48, 48))
    convolutions = []
    for _ in range(8):
        convolutions.append(graph.add(layers.Conv2d(16, 3, padding=1)))
        graph.add(layers.ReLU())
    params = graph.initialise(0)
    assert "winograd6" not in kernels(compile_plan(graph, params))
    slow, fast = {1: 2e5}, {1: 1e5}
    times = {"winograd6": fast, "winograd4": slow, "winograd2": slow, "direct": slow}
    measured = Choice(times=dict.fromkeys(convolutions, times))
    plan = compile_plan(graph, params, choice=measured)
    assert kernels(plan) == ["winograd6"] * 8
    x = np.random.default_rng(0).standard_normal((1, *graph.input_shape)).astype(np.float32)
    expected = graph_reference.evaluate(graph, params, x)[graph.nodes[-1].name]
    error = np.abs(plan.run(x)[0] - expected).max() / np.abs(expected).max()
    assert error < 2e-5  # 1e-4 is what a network may differ by from other engines
