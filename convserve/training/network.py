"""Which layers of a graph are trained, and on what scores the loss is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from convserve.errors import ShapeError
from convserve.graph import Graph, Node
from convserve.graph.layers import Dropout, Flatten, ParameterSpec, Softmax

__all__ = ["Network", "ancestors", "trained_network"]


class Network(NamedTuple):
    """logits: the layer that the loss reads; trained: it and what it depends on, by name, in
    topological order; output: the graph's one output."""

    logits: str
    trained: dict[str, Node]
    output: Node

    def trainable(self, specs: Mapping[str, ParameterSpec]) -> list[str]:
        """The parameters that learn. What no output depends on has no gradient, and stays."""
        return [
            name
            for name, spec in specs.items()
            if spec.trainable and name.rpartition(".")[0] in self.trained
        ]


def trained_network(graph: Graph) -> Network:
    """Cross-entropy is taken of the logits, where it is stable: a final softmax is part of it.

    Raises ShapeError if the graph has several outputs, one that is not a row of scores, or one
    whose softmax comes before its Flatten or Dropout.
    """
    outputs = list(graph.outputs.values())
    if len(outputs) != 1 or len(graph.shape(outputs[0])) != 1:
        raise ShapeError(
            "training needs a graph with one output of shape (classes,), it has "
            + ", ".join(f"{name} {graph.shape(name)}" for name in outputs)
        )
    output = graph.node(outputs[0])
    if isinstance(output.op, (Flatten, Dropout)):
        for node in graph.nodes:
            # Its probabilities would be taken for logits.
            if node.name in output.inputs and isinstance(node.op, Softmax):
                raise ShapeError(
                    f"training needs the final softmax after {type(output.op).__name__}(), layer "
                    f"{node.name!r} is before {output.name!r}"
                )
    logits = output.inputs[0] if isinstance(output.op, Softmax) else output.name
    return Network(logits, ancestors(graph, logits), output)


def ancestors(graph: Graph, name: str) -> dict[str, Node]:
    """The layers that `name` depends on and itself, by name, in topological order."""
    needed = {name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return {node.name: node for node in graph.nodes if node.name in needed}
