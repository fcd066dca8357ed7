"""Graph to steps: drop what inference does not need, fold batch norm, fuse what follows a layer.

    conv -> batch norm -> add -> ReLU      one step: folded weights, residual and ReLU on store
    affine -> batch norm -> ReLU           likewise
    batch norm, add -> ReLU                ReLU on store
    dropout                                nothing
    flatten before an affine layer         nothing: the affine layer reads the image as it lies

A value that is asked for, or read by several layers, is kept: nothing is fused past it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from convserve.graph import Graph, Node, layers
from convserve.graph.layers import Shape

__all__ = ["Step", "Steps", "lower"]

Array = npt.NDArray[np.float32]


@dataclass
class Step:
    """One operation of the plan; it makes the value `name`."""

    op: layers.Operator
    name: str
    inputs: list[str]
    shape: Shape
    weight: Array | None = None  # of a convolution or affine layer, batch norm folded in
    bias: Array | None = None
    scale: Array | None = None  # of a batch norm that could not be folded
    shift: Array | None = None
    relu: bool = False
    residual: str | None = None
    nodes: list[str] = field(default_factory=list)  # the layers that it computes


@dataclass
class Steps:
    """The steps in order of execution, each value's shape, and the value behind each output."""

    steps: list[Step]
    shapes: dict[str, Shape]
    outputs: dict[str, str]  # layer asked for -> value


def lower(graph: Graph, params: Mapping[str, Array], outputs: list[str]) -> Steps:
    """The steps that compute the layers named in `outputs` (the input's name is allowed too)."""
    return _Lowering(graph, params, outputs).run()


class _Lowering:
    def __init__(self, graph: Graph, params: Mapping[str, Array], outputs: list[str]) -> None:
        self.graph, self.params = graph, params
        self.nodes = _needed(graph, outputs)
        self.alias: dict[str, str] = {}  # a layer that computes nothing -> the value it stands for
        self.readers: dict[str, list[Node]] = {}
        self.shapes: dict[str, Shape] = {graph.input_name: graph.input_shape}
        self.kept: set[str] = set()
        self.find_aliases()
        self.asked = {output: self.value(output) for output in outputs}
        self.kept.update(self.asked.values())

    def find_aliases(self) -> None:
        for node in self.nodes:
            free = isinstance(node.op, layers.Flatten) and self.is_free(node)
            if free or isinstance(node.op, layers.Dropout):
                self.alias[node.name] = node.inputs[0]
        for node in self.nodes:
            if node.name not in self.alias:
                for value in {self.value(source) for source in node.inputs}:
                    self.readers.setdefault(value, []).append(node)

    def is_free(self, flatten: Node) -> bool:
        """Whether no reader needs the values in one row: affine layers and outputs don't."""
        shape = self.graph.shape(flatten.inputs[0])
        if len(shape) == 1 or shape[1:] == (1, 1):
            return True
        names, wanted = [flatten.name], {node.name for node in self.nodes}
        for name in names:
            for reader in self.graph.consumers(name):
                if reader not in wanted or isinstance(self.graph.node(reader).op, layers.Affine):
                    continue
                if not isinstance(self.graph.node(reader).op, layers.Dropout | layers.Flatten):
                    return False
                names.append(reader)
        return True

    def value(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def run(self) -> Steps:
        steps: list[Step] = []
        done: set[str] = {self.graph.input_name}  # values made so far
        fused: set[str] = set()  # layers that an earlier step computes
        for node in self.nodes:
            if node.name in self.alias or node.name in fused:
                continue
            step = self.step(node, done)
            fused.update(step.nodes)
            done.add(step.name)
            self.shapes[step.name] = step.shape
            steps.append(step)
        return Steps(steps, self.shapes, self.asked)

    def step(self, node: Node, done: set[str]) -> Step:
        inputs = [self.value(source) for source in node.inputs]
        step = Step(node.op, node.name, inputs, node.shape, nodes=[node.name])
        if isinstance(node.op, layers.Conv2d | layers.Affine):
            step.weight = self.params[f"{node.name}.weight"]
            step.bias = self.params.get(f"{node.name}.bias")
            after = self.only_reader(step.name)
            if after is not None and isinstance(after.op, layers.BatchNorm):
                self.fold(step, after)
                after = self.only_reader(step.name)
            if (
                after is not None
                and isinstance(after.op, layers.Add)
                and isinstance(node.op, layers.Conv2d)
                and not is_depthwise(node.op, self.shapes[inputs[0]])
            ):
                self.add_residual(step, after, done)
        elif isinstance(node.op, layers.BatchNorm):
            step.scale, step.shift = self.affine_of(node)
        elif not isinstance(node.op, layers.Add):
            return step
        after = self.only_reader(step.name)
        if after is not None and isinstance(after.op, layers.ReLU):
            step.relu = True
            self.extend(step, after)
        return step

    def only_reader(self, value: str) -> Node | None:
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.kept else None

    def extend(self, step: Step, node: Node) -> None:
        step.name, step.shape = node.name, node.shape
        step.nodes.append(node.name)

    def affine_of(self, node: Node) -> tuple[Array, Array]:
        """Batch norm with its running statistics as x * scale + shift, computed in float64."""
        assert isinstance(node.op, layers.BatchNorm)
        weight, bias, mean, var = (
            self.params[f"{node.name}.{name}"].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(var + node.op.eps)
        return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)

    def fold(self, step: Step, norm: Node) -> None:
        assert step.weight is not None and isinstance(norm.op, layers.BatchNorm)
        var = self.params[f"{norm.name}.running_var"].astype(np.float64)
        scale = self.params[f"{norm.name}.weight"] / np.sqrt(var + norm.op.eps)
        bias = 0.0 if step.bias is None else step.bias.astype(np.float64)
        bias = (bias - self.params[f"{norm.name}.running_mean"]) * scale
        bias = bias + self.params[f"{norm.name}.bias"]
        by_filter = (-1,) + (1,) * (step.weight.ndim - 1)
        step.weight = (step.weight * scale.reshape(by_filter)).astype(np.float32)
        step.bias = bias.astype(np.float32)
        self.extend(step, norm)

    def add_residual(self, step: Step, add: Node, done: set[str]) -> None:
        """Adds the other operand on store, if it is there when the convolution runs."""
        operands = [self.value(source) for source in add.inputs]
        if operands[0] == operands[1]:
            return
        other = operands[1] if operands[0] == step.name else operands[0]
        # The network's input lies unblocked, without a halo of its own.
        if other in done and other != self.graph.input_name:
            step.residual = other
            self.extend(step, add)


def _needed(graph: Graph, outputs: list[str]) -> list[Node]:
    """The layers that the outputs depend on, in topological order."""
    needed = set(outputs)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return [node for node in graph.nodes if node.name in needed]


def is_depthwise(op: layers.Conv2d, shape: Shape) -> bool:
    """Whether the convolution has one filter for each channel of an input of that shape."""
    return 1 < op.groups == shape[0] == op.out_channels


def image_shape(shape: Shape) -> tuple[int, int, int]:
    """(F,) as an image of one pixel."""
    assert prod(shape) > 0
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])
