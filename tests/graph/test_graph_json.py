"""Graphs to JSON values and back; hostile values raise only the documented errors."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.errors import ConvserveError, ShapeError, UnknownNameError
from convserve.graph import Graph, architectures, layers

PLAIN = [
    layers.Add, layers.Concat, layers.Flatten, layers.ReLU, layers.Softmax, layers.BatchNorm,
    layers.GlobalAvgPool2d, layers.GlobalMaxPool2d, layers.LogSoftmax, layers.Mul, layers.Sub,
    layers.PReLU, layers.ScaleShift, layers.SiLU, layers.Clip, layers.LayerNorm,
]  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random DAGs: each layer reads layers anywhere before it, where its rule allows."""
    sizes = st.integers(1, 9)
    g = Graph(draw(st.tuples(st.integers(1, 4), sizes, sizes)), input_name=draw(NAMES))
    if draw(st.booleans()):
        g.add_input(f"{g.input_name} too", draw(st.sampled_from([(3,), (2, 5, 4)])))
    small = st.integers(1, 3)
    operators = st.one_of(
        st.builds(
            layers.Conv2d, small, small, small, st.integers(0, 2), small, rounding=st.just("floor")
        ),
        st.builds(layers.MaxPool2d, small, small, rounding=st.sampled_from(["floor", "ceil"])),
        st.builds(layers.AvgPool2d, small, small, rounding=st.just("floor")),
        st.builds(layers.Affine, small, st.booleans()),
        st.builds(layers.Dropout, st.floats(0, 0.9)),
        st.builds(layers.Slice, st.integers(0, 1), small.map(lambda n: n + 1)),
        st.builds(layers.ChannelShuffle, small),
        st.builds(layers.Pad, st.integers(0, 2), st.floats(-9, 9)),
        st.builds(layers.Crop, st.integers(0, 2)),
        st.sampled_from([cls() for cls in PLAIN]),
    )
    g.add(layers.ReLU())
    for _ in range(draw(st.integers(0, 12))):
        op = draw(operators)
        count = op.arity or draw(st.integers(2, 4))
        names = [*g.inputs, *(node.name for node in g.nodes)]
        inputs = draw(st.lists(st.sampled_from(names), min_size=count, max_size=count))
        try:
            g.add(op, *inputs)
        except ShapeError:
            continue
    layer_names = [node.name for node in g.nodes]
    outputs = st.dictionaries(NAMES, st.sampled_from(layer_names), max_size=3)
    for name, layer in draw(outputs).items():
        g.set_output(layer, name)
    return g


NAMES = st.text("abc.:/ é", min_size=1, max_size=6)


@settings(max_examples=200)
@given(graphs())
def test_random_graphs_round_trip(g: Graph) -> None:
    through_json = json.loads(json.dumps(g.to_dict()))
    again = Graph.from_dict(through_json)
    assert again == g
    assert again.nodes == g.nodes and again.outputs == g.outputs
    assert again.parameter_specs() == g.parameter_specs()
    assert [again.consumers(n.name) for n in again.nodes] == [g.consumers(n.name) for n in g.nodes]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found += places(inner, (*path, key))
    return found


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 2**31 - 1, 2**31, 2**63, 10**300, "", "input", "a\n", [], {}, [[]]]),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-1, 3), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
RESNET = architectures.build("resnet20", blocks=1).to_dict()
LENET = architectures.build("lenet").to_dict()


@settings(max_examples=500)
@given(base=st.sampled_from([RESNET, LENET]), data=st.data())
def test_mutated_graphs_raise_only_what_is_documented(
    base: dict[str, Any], data: st.DataObject
) -> None:
    mutant = copy.deepcopy(base)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(mutant)))
        parent = mutant
        for key in path:
            parent = parent[key]
        action = data.draw(st.sampled_from(["replace", "delete", "add", "duplicate"]))
        if action == "replace":
            parent[last] = data.draw(HOSTILE)
        elif action == "delete":
            del parent[last]
        elif action == "add" and isinstance(parent, dict):
            parent[data.draw(st.text(max_size=3))] = data.draw(HOSTILE)
        elif action == "duplicate" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        if not places(mutant):
            break
    started = time.process_time()
    try:
        g = Graph.from_dict(mutant)
    except ConvserveError as error:
        assert isinstance(error, (ShapeError, UnknownNameError)) and str(error)
    else:
        assert Graph.from_dict(g.to_dict()) == g
    assert time.process_time() - started < 10


def changed(**changes: Any) -> dict[str, Any]:
    """A small valid graph with some entries replaced."""
    g = Graph((1, 4, 4))
    g.add(layers.Conv2d(2, 3))
    return {**g.to_dict(), **changes}


def several(*inputs: list[Any]) -> dict[str, Any]:
    """The same with these inputs, [name, shape] each."""
    small = changed(inputs=[{"name": name, "shape": shape} for name, shape in inputs])
    del small["input"]
    return small


def node(**changes: Any) -> dict[str, Any]:
    return changed(nodes=[{**changed()["nodes"][0], **changes}])


@pytest.mark.parametrize(
    "data, message",
    [
        (None, "graph must be an object, got None"),
        ([], "graph must be an object"),
        ({}, "graph lacks the entry 'input'"),
        (changed(extra=1), "graph has an unknown entry 'extra'"),
        (changed(nodes={}), "graph: 'nodes' must be a list"),
        (changed(nodes=[]), "the graph has no layers"),
        (changed(nodes=[3]), "layer 0 of the graph must be an object, got 3"),
        (changed(input={"name": "x"}), "graph input lacks the entry 'shape'"),
        (changed(input={"name": "x", "shape": [1, 2]}), "input_shape must be"),
        (changed(input={"name": "x", "shape": [1, "2", 3]}), "input_shape must be an integer"),
        (several(), "the graph has no inputs"),
        (several(["x", [1, 4, 4]], ["x", [3]]), "input 'x': the name is taken"),
        (several(["x", [3]]), "input_shape must be"),
        (several(["x", [1, 4, 4]], ["y", [3, 3]]), "input 'y': its shape must be"),
        (several(["x", [1, 4, 4]], ["y", [0]]), "the shape of input 'y' must be from 1"),
        (several(["x", [1, 4, 4]], *[[f"x{i}", [1]] for i in range(256)]), "at most 256 inputs"),
        (changed(inputs=[]), "unknown entry 'input'"),
        (changed(outputs={}), "the graph has no outputs"),
        (changed(outputs={"output": "nope"}), "no layer is named 'nope'"),
        (changed(outputs={"output": ["conv1"]}), "no layer is named"),
        (changed(outputs={"": "conv1"}), "output name must be"),
        (node(op="conv7d"), "layer 'conv1': unknown operator 'conv7d'"),
        (node(inputs=[]), "layer 'conv1': it has no inputs"),
        (node(inputs=["conv1"]), "layer 'conv1': no layer is named 'conv1'"),
        (node(inputs=[["input"]]), "layer 'conv1': no layer is named"),
        (node(inputs=["input", "input"]), "layer 'conv1': conv2d needs 1 input, got 2"),
        (node(name="input"), "layer 'input': the name is taken"),
        (node(name="a b"), "a layer's name must be"),
        (node(attributes={}), "layer 'conv1': conv2d: .*lacks the attribute 'out_channels'"),
        (
            node(attributes={"out_channels": True, "kernel_size": 3}),
            "layer 'conv1': conv2d: out_channels must be an integer",
        ),
        (
            node(attributes={"out_channels": 3, "kernel_size": 3, "x": 1}),
            "layer 'conv1': conv2d has no attribute 'x'",
        ),
    ],
)
def test_faults_are_named(data: Any, message: str) -> None:
    with pytest.raises((ShapeError, UnknownNameError), match=message):
        Graph.from_dict(data)


def test_a_graph_with_too_many_layers_is_refused_quickly() -> None:
    relu = {"op": "relu", "attributes": {}}
    nodes = [
        {"name": f"r{i}", "inputs": [f"r{i - 1}" if i else "input"], **relu} for i in range(10_001)
    ]
    with pytest.raises(ShapeError, match="at most 10000 layers"):
        Graph.from_dict(changed(nodes=nodes, outputs={"output": "r0"}))
