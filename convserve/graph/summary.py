"""What each layer costs, and what a dense layer in the place of a convolution would.

A dense layer that maps the same input to the same output has a weight for every pair of values,
where a convolution has one small filter a channel, shared over all places: that is why a
convolutional network is small, and the filter's neighbourhood is why it keeps what is near what.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from convserve.graph.graph import Graph
from convserve.graph.layers import Conv2d, Shape

__all__ = ["LayerSummary", "summarise"]


class LayerSummary(NamedTuple):
    """The cost of one layer; `dense_*` are those of a dense layer in its place.

    For layers other than convolutions they are the layer's own.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: Shape
    parameters: int
    macs: int
    dense_parameters: int
    dense_macs: int


def summarise(graph: Graph) -> list[LayerSummary]:
    """One row a layer, in the graph's order."""
    rows = []
    for node in graph.nodes:
        shapes = graph.input_shapes(node)
        parameters = sum(prod(s.shape) for s in node.op.parameters(shapes).values())
        macs = node.op.macs(shapes)
        dense_parameters, dense_macs = parameters, macs
        if isinstance(node.op, Conv2d):
            dense_macs = prod(shapes[0]) * prod(node.shape)
            dense_parameters = dense_macs + (prod(node.shape) if node.op.bias else 0)
        rows.append(
            LayerSummary(
                node.name, node.op.op, node.inputs, node.shape,
                parameters, macs, dense_parameters, dense_macs,
            )
        )  # fmt: skip
    return rows
