"""Concatenations, slices and shuffles: joined and in place, and what they must not touch."""

from __future__ import annotations

import time

import graph_reference
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.graph import Graph, layers
from convserve.kernels import _core
from convserve.plan import Plan, compile_plan
from convserve.plan.memory import Extent, place


def check(graph: Graph, outputs: list[str] | None = None) -> Plan:
    """The plan is right on every instruction set, and the same bits in any batch; the last plan."""
    rng = np.random.default_rng(len(graph.nodes))
    params = graph.initialise(rng)
    for name, value in params.items():
        if value.ndim == 1:
            params[name] = (value + rng.random(value.shape)).astype(np.float32)
    x = rng.standard_normal((3, *graph.input_shape)).astype(np.float32)
    expected = graph_reference.evaluate(graph, params, x)
    bounds = graph_reference.error_bounds(graph, params, x)
    names = outputs or list(graph.outputs.values())
    before = _core.isa()
    try:
        for isa in reversed(_core.available_isas()):
            _core.use_isa(isa)
            plan = compile_plan(graph, params, outputs)
            results = plan.run(x, 1)
            for name, result in zip(names, results, strict=True):
                reference.assert_close(
                    result, expected[name], bounds[name], isa=isa, name=name, graph=graph.to_dict()
                )
            again = [plan.run(x, 2), *(plan.run(x[2:].copy(), 1) for _ in "ab")]
            for several, first in zip(again, (0, 2, 2), strict=True):
                for one, result in zip(several, results, strict=True):
                    reference.assert_same_bits(one, result[first:], isa=isa)
    finally:
        _core.use_isa(before)
    return plan


@st.composite
def moving_graphs(draw: st.DrawFn) -> Graph:
    """Many concatenations, slices and shuffles between what may be computed in place."""
    width = st.sampled_from([4, 8, 16, 16, 32, 48, 5, 20, 58])
    graph = Graph((draw(width), draw(st.integers(1, 4)), draw(st.integers(1, 5))))
    names = [graph.input_name]
    for _ in range(draw(st.integers(3, 12))):
        source = draw(st.sampled_from(names[-4:]))
        channels, *_ = graph.shape(source)
        inputs = [source]
        match draw(st.sampled_from(["concat"] * 3 + ["slice", "shuffle", "conv", "other"] * 2)):
            case "concat" if channels < 200:
                inputs += draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
                op: layers.Operator = layers.Concat()
            case "slice":
                places = [c for c in range(channels + 1) if c % 4 == 0 or c in (1, 29, channels)]
                start = draw(st.sampled_from([c for c in places if c < channels]))
                op = layers.Slice(start, draw(st.sampled_from([c for c in places if c > start])))
            case "shuffle":
                groups = draw(st.sampled_from([g for g in (1, 2, 4, 29) if channels % g == 0]))
                op = layers.ChannelShuffle(groups)
            case "conv":
                size = draw(st.sampled_from([1, 3]))
                groups = draw(st.sampled_from([1, channels]))
                filters = channels if groups > 1 else draw(width)
                op = layers.Conv2d(filters, size, 1, size // 2, groups=groups)
            case _:
                op = draw(
                    st.sampled_from([
                        layers.ReLU(), layers.Sigmoid(), layers.ScaleShift(), layers.LayerNorm(1.0),
                        layers.PReLU(), layers.MaxPool2d(3, 1, 1), layers.AvgPool2d(3, 1, 1),
                        layers.Add(), layers.Mul(), layers.Pad(0, 0.0), layers.LRN(5),
                    ])
                )  # fmt: skip
                if op.arity == 2:
                    gate = graph.add(layers.Sigmoid(), source)
                    if draw(st.booleans()):
                        gate = graph.add(layers.GlobalAvgPool2d(), gate)
                    inputs = [source, gate][:: draw(st.sampled_from([1, -1]))]
        names.append(graph.add(op, *inputs))
    return graph


@settings(max_examples=120)
@given(st.data())
def test_random_moves(data: st.DataObject) -> None:
    graph = data.draw(moving_graphs())
    names = [graph.input_name, *(node.name for node in graph.nodes)]
    check(graph, data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))


def copied(plan: Plan) -> list[int]:
    """Channels that each step copies which does nothing else."""
    moves = (step for step in plan.steps.steps if step.origins is not None)
    return [sum(run.channels for run in step.copied) for step in moves]


@pytest.mark.parametrize("grown", [True, False])
def test_a_growing_concatenation_copies_nothing(grown: bool) -> None:
    """DenseNet: whether each concatenation names the one before or all that is in it."""
    graph = Graph((3, 6, 5))
    parts = [graph.add(layers.Conv2d(64, 3, padding=1))]
    for _ in range(4):
        joined = graph.add(layers.Concat(), *parts) if len(parts) > 1 else parts[0]
        graph.add(layers.ScaleShift(), joined)
        graph.add(layers.ReLU())
        new = graph.add(layers.Conv2d(32, 3, padding=1))
        parts = [joined, new] if grown else [*parts, new]
    graph.add(layers.Conv2d(8, 1), graph.add(layers.Concat(), *parts))
    assert copied(check(graph)) == [0, 0, 0, 0]


def test_only_what_does_not_begin_a_block_is_copied() -> None:
    graph = Graph((24, 4, 4))
    parts = [graph.add(layers.Conv2d(n, 1), graph.input_name) for n in (32, 20, 12, 16)]
    graph.add(layers.MaxPool2d(3, 1, 1), graph.add(layers.Concat(), *parts))
    assert copied(check(graph)) == [12 if _core.isa() == "avx512" else 0]


def test_shuffled_halves_are_one_pass_each() -> None:
    """ShuffleNet: what the first half needs goes through no tensor of its own between the units."""
    graph = Graph((24, 6, 6))
    x = graph.add(layers.Conv2d(58, 1))
    for _ in range(3):
        kept, used = (graph.add(layers.Slice(at, at + 29), x) for at in (0, 29))
        graph.add(layers.Conv2d(29, 1), used)
        graph.add(layers.Conv2d(29, 3, padding=1, groups=29))
        x = graph.add(layers.Concat(), kept, graph.nodes[-1].name)
        x = graph.add(layers.ChannelShuffle(2), x)
    graph.add(layers.Conv2d(5, 1))
    plan = check(graph)
    assert copied(plan) == [29, 29, 29, 58]


def test_results_take_the_place_of_what_nothing_else_reads() -> None:
    def arena(keep: bool) -> int:
        graph = Graph((16, 64, 64))
        graph.add(layers.MaxPool2d(3, 1, 1))
        graph.add(layers.ReLU())
        graph.add(layers.LRN(5))
        graph.add(layers.Sigmoid())
        outputs = ["pool1", "lrn1", "sigmoid1"] if keep else ["sigmoid1"]
        return compile_plan(graph, {}, outputs).arena_bytes

    tensor, strip = 4 * 16 * 64 * 64, 32 << 10  # a strip of rows on its way to the result
    assert 2 * tensor <= arena(False) <= 2 * tensor + strip
    assert 3 * tensor <= arena(True) <= 3 * tensor + strip


def test_many_values_are_placed_quickly() -> None:
    start = time.process_time()
    offsets = place({i: Extent(16, i, 9_000) for i in range(9_000)})
    assert sorted(offsets.values()) == list(range(0, 16 * 9_000, 16))
    graph = Graph((1, 1, 1))
    for _ in range(1_000):
        graph.add(layers.Clip(-1.0, None), graph.input_name)
    graph.add(layers.Concat(), *(node.name for node in graph.nodes))
    compile_plan(graph, {})
    assert time.process_time() - start < 30  # it took a minute; about one is usual
