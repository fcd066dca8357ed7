"""Graphs of several inputs: images and rows, read by every kind of layer."""

from __future__ import annotations

import graph_reference
import numpy as np
import pytest
import reference

from convserve.graph import Graph, layers
from convserve.plan import compile_plan


def siamese() -> Graph:
    """Two images of few channels, and a row that joins their features."""
    g = Graph((3, 9, 7), input_name="left")
    g.add_input("right", (1, 9, 7))
    g.add_input("facts", (5,))
    left = g.add(layers.Conv2d(6, 3, padding=1), "left")
    right = g.add(layers.Conv2d(6, 3, padding=1), "right")
    both = g.add(layers.Concat(), left, right, "left", name="both")
    g.add(layers.GlobalAvgPool2d())
    pooled = g.add(layers.Flatten())
    dense = g.add(layers.ReLU(), g.add(layers.Affine(4), "facts"))
    scores = g.add(layers.Affine(3), g.add(layers.Concat(), pooled, dense, "facts"))
    g.set_output(scores, "scores")
    g.set_output(both, "both")
    return g


def wide() -> Graph:
    """Inputs of many channels, added to each other and to a convolution of one of them."""
    g = Graph((20, 6, 6), input_name="a")
    g.add_input("b", (20, 6, 6))
    g.add_input("gate", (20, 1, 1))
    conv = g.add(layers.Conv2d(20, 3, padding=1), "a")
    summed = g.add(layers.Add(), conv, "b")
    g.add(layers.Mul(), g.add(layers.ReLU(), summed), "gate")
    g.add(layers.Sub(), g.add(layers.Add(), "a", "b"), summed)
    return g


@pytest.mark.parametrize("make", [siamese, wide])
def test_several_inputs(isa: str, make) -> None:
    graph, rng = make(), np.random.default_rng(0)
    params = graph.initialise(rng)
    x = {
        name: rng.standard_normal((70, *shape)).astype(np.float32)
        for name, shape in graph.inputs.items()
    }
    few = {name: value[:3] for name, value in x.items()}
    expected = graph_reference.evaluate(graph, params, few)
    bounds = graph_reference.error_bounds(graph, params, few)
    asked = [*graph.inputs, *(node.name for node in graph.nodes)]
    for outputs in ([list(graph.outputs.values())[-1]], asked):
        plan = compile_plan(graph, params, outputs)
        whole = plan.run(list(x.values()), 1)
        for name, found in zip(outputs, whole, strict=True):
            reference.assert_close(found[:3], expected[name], bounds[name], layer=name)
        for threads, part in ((2, slice(0, 70)), (2, slice(69, 70)), (1, slice(5, 12))):
            again = plan.run([np.ascontiguousarray(v[part]) for v in x.values()], threads)
            for found, value in zip(again, whole, strict=True):
                reference.assert_same_bits(found, value[part], threads=threads)


def test_no_images() -> None:
    graph = siamese()
    plan = compile_plan(graph, graph.initialise(0))
    empty = [np.empty((0, *shape), np.float32) for shape in graph.inputs.values()]
    assert [found.shape for found in plan.run(empty)] == [(0, 3), (0, 15, 9, 7)]


def test_an_input_that_nothing_reads() -> None:
    graph = Graph((2, 3, 3))
    graph.add_input("spare", (7,))
    graph.add(layers.ReLU(), "input")
    plan = compile_plan(graph, {})
    x = np.full((2, 2, 3, 3), -1, np.float32)
    (found,) = plan.run([x, np.zeros((2, 7), np.float32)])
    assert not found.any()
