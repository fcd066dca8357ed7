"""Graph to steps: drop what inference does not need, fold batch norm, fuse what follows a layer.

    conv -> batch norm -> add -> ReLU      one step: folded weights, residual and ReLU on store
    affine -> scale and shift -> GELU      likewise, for every activation without parameters
    batch norm, add, mul -> ReLU           ReLU on store
    concat -> shuffle -> slice             one step that moves channels (plan/join.py)
    pad with zeros -> conv                 the convolution pads more
    dropout                                nothing
    flatten before an affine layer         nothing: the affine layer reads the image as it lies

A value that is asked for, or read by several layers, is kept: nothing is fused past it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from convserve.graph import Graph, Node, layers
from convserve.graph.layers import Shape
from convserve.kernels._arguments import padding_sides
from convserve.plan.abilities import can_pool, is_depthwise
from convserve.plan.activations import LINEAR, Activation, activation_of
from convserve.plan.moves import Origins, Run, origins_of

__all__ = ["Step", "Steps", "lower"]

Array = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]
# Pixels of a map that is pooled as a whole while it is in the cache.
WHOLE_MAP = 256
_PARAMETERS = ("weight", "bias", "slope")


@dataclass
class Step:
    """One operation of the plan; it makes the value `name`."""

    op: layers.Operator
    name: str
    inputs: list[str]
    shape: Shape
    weight: Array | None = None  # of a convolution or affine layer, until it is packed
    factor: Exact | None = None  # of each filter, by the batch norm that is folded in
    bias: Array | None = None
    # One value a channel: of a batch norm that could not be folded, a layer norm, PReLU's slopes.
    scale: Array | None = None
    shift: Array | None = None
    activation: Activation = LINEAR
    residual: str | None = None
    # Done on store, after the activation: shape is then the pooled one.
    pool: layers.MaxPool2d | layers.AvgPool2d | None = None
    unpooled: Shape = ()
    origins: Origins | None = None  # of a step that only moves channels
    copied: list[Run] = field(default_factory=list)  # what of it does not lie in its place anyway
    nodes: list[str] = field(default_factory=list)  # the layers that it computes

    def take_weight(self) -> Array:
        """The weight, batch norm folded in. The step forgets it: what is packed stays."""
        weight, self.weight = self.weight, None
        assert weight is not None
        if self.factor is None:
            return weight
        folded = np.empty_like(weight)
        factor = self.factor.reshape(-1, *[1] * (weight.ndim - 1))
        # in float64, a piece at a time
        np.multiply(weight, factor, out=folded, dtype=np.float64, casting="same_kind")
        return folded


@dataclass
class Steps:
    """The steps in order of execution, each value's shape, and the value behind each output."""

    steps: list[Step]
    shapes: dict[str, Shape]
    outputs: dict[str, str]  # layer asked for -> value


def lower(graph: Graph, params: Mapping[str, Array], outputs: list[str]) -> Steps:
    """The steps that compute the layers named in `outputs` (an input's name is allowed too)."""
    return _Lowering(graph, params, outputs).run()


class _Lowering:
    def __init__(self, graph: Graph, params: Mapping[str, Array], outputs: list[str]) -> None:
        self.graph, self.params = graph, params
        self.nodes = _needed(graph, outputs)
        self.alias: dict[str, str] = {}  # a layer that computes nothing -> the value it stands for
        self.outputs = set(outputs)
        self.readers: dict[str, list[Node]] = {}
        self.shapes: dict[str, Shape] = graph.inputs
        self.kept: set[str] = set()
        self.find_aliases()
        self.asked = {output: self.value(output) for output in outputs}
        self.kept.update(self.asked.values())

    def find_aliases(self) -> None:
        for node in self.nodes:
            free = isinstance(node.op, layers.Flatten) and self.is_free(node)
            free = free or (isinstance(node.op, layers.Pad) and self.is_halo(node))
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

    def is_halo(self, pad: Node) -> bool:
        """Whether only convolutions read it, which can add its zeros to their own padding."""
        assert isinstance(pad.op, layers.Pad)
        wanted = {node.name for node in self.nodes}
        readers = [self.graph.node(name) for name in self.graph.consumers(pad.name)]
        return (
            pad.op.value == 0
            and pad.name not in self.outputs
            and all(isinstance(r.op, layers.Conv2d) for r in readers if r.name in wanted)
        )

    def value(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def run(self) -> Steps:
        steps: list[Step] = []
        done = set(self.graph.inputs)  # values made so far
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
        own = {name: self.params.get(f"{node.name}.{name}") for name in _PARAMETERS}
        match node.op:
            case layers.Conv2d() | layers.Affine():
                step.weight, step.bias = own["weight"], own["bias"]
                self.fold_scaling(step)
                if isinstance(node.op, layers.Conv2d):
                    step.op = self.with_padding(node.op, node.inputs[0])
                    if not is_depthwise(node.op, self.shapes[inputs[0]]):
                        self.add_residual(step, done)
            case layers.BatchNorm() | layers.ScaleShift():
                scale, shift = self.scaling(step, *self.affine_of(node))
                step.scale, step.shift = scale.astype(np.float32), shift.astype(np.float32)
            case layers.LayerNorm():
                step.scale, step.shift = own["weight"], own["bias"]
                return step
            case layers.PReLU():
                step.scale = own["slope"]
                return step
            case layers.Add() | layers.Sub() | layers.Mul():
                pass
            case layers.Concat() | layers.Slice() | layers.ChannelShuffle():
                shapes = [self.shapes[name] for name in inputs]
                step.origins = origins_of(node.op, inputs, shapes)
                return step
            case _:
                activation = activation_of(node.op)
                if activation is not None:
                    step.activation = activation
                return step
        after = self.only_reader(step.name)
        activation = None if after is None else activation_of(after.op)
        if after is not None and activation is not None:
            step.activation = activation
            self.extend(step, after)
        if isinstance(step.op, layers.Conv2d):
            self.add_pooling(step)
        return step

    def only_reader(self, value: str) -> Node | None:
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.kept else None

    def extend(self, step: Step, node: Node) -> None:
        step.name, step.shape = node.name, node.shape
        step.nodes.append(node.name)

    def affine_of(self, node: Node) -> tuple[Exact, Exact]:
        """Batch norm with its running statistics, or a scaling, as x * scale + shift."""
        own = {
            name: self.params[f"{node.name}.{name}"].astype(np.float64)
            for name in node.op.parameters(self.graph.input_shapes(node))
        }
        if isinstance(node.op, layers.ScaleShift):
            return own["scale"], own["shift"]
        assert isinstance(node.op, layers.BatchNorm)
        scale = own["weight"] / np.sqrt(own["running_var"] + node.op.eps)
        return scale, own["bias"] - own["running_mean"] * scale

    def scaling(self, step: Step, scale: Exact, shift: Exact) -> tuple[Exact, Exact]:
        """x * scale + shift together with all batch norms and scalings that follow the step."""
        while (after := self.only_reader(step.name)) is not None:
            if not isinstance(after.op, layers.BatchNorm | layers.ScaleShift):
                break
            factor, term = self.affine_of(after)
            scale, shift = scale * factor, shift * factor + term
            self.extend(step, after)
        return scale, shift

    def fold_scaling(self, step: Step) -> None:
        assert step.weight is not None
        filters = len(step.weight)
        before = len(step.nodes)
        bias = np.zeros(filters) if step.bias is None else step.bias.astype(np.float64)
        scale, bias = self.scaling(step, np.ones(filters), bias)
        if len(step.nodes) > before:
            step.factor = scale
            step.bias = bias.astype(np.float32)

    def with_padding(self, op: layers.Conv2d, source: str) -> layers.Conv2d:
        """The convolution with the zeros of a Pad before it."""
        if source not in self.alias:
            return op
        pad = self.graph.node(source).op
        if not isinstance(pad, layers.Pad):
            return op
        own, more = padding_sides(op.padding), padding_sides(pad.padding)
        sides = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(own, more, strict=True)]
        return replace(op, padding=(sides[0], sides[1]))

    def add_residual(self, step: Step, done: set[str]) -> None:
        """Adds the other operand on store, if it is there when the convolution runs."""
        add = self.only_reader(step.name)
        if add is None or not isinstance(add.op, layers.Add):
            return
        operands = [self.value(source) for source in add.inputs]
        if operands[0] == operands[1]:
            return
        other = operands[1] if operands[0] == step.name else operands[0]
        # An input of the network lies unblocked, without a halo of its own.
        if (
            other in done
            and other not in self.graph.inputs
            and image_shape(self.shapes[other]) == image_shape(step.shape)
        ):
            step.residual = other
            self.extend(step, add)

    def add_pooling(self, step: Step) -> None:
        """Pools on store, if the kernel that the convolution takes can do it."""
        pool = self.only_reader(step.name)
        op = None if pool is None else _windowed(pool.op, step.shape)
        if pool is None or op is None:
            return
        assert isinstance(step.op, layers.Conv2d)
        shape = image_shape(self.shapes[step.inputs[0]])
        if can_pool(step.op, shape, op, image_shape(step.shape)):
            step.pool, step.unpooled = op, step.shape
            self.extend(step, pool)


def _needed(graph: Graph, outputs: list[str]) -> list[Node]:
    """The layers that the outputs depend on, in topological order."""
    needed = set(outputs)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return [node for node in graph.nodes if node.name in needed]


def _windowed(op: layers.Operator, shape: Shape) -> layers.MaxPool2d | layers.AvgPool2d | None:
    """The pooling as one by windows; that of a whole map where a strip of it is small."""
    match op:
        case layers.MaxPool2d() | layers.AvgPool2d():
            return op
        case layers.GlobalAvgPool2d() if prod(shape[1:]) <= WHOLE_MAP:
            return layers.AvgPool2d((shape[1], shape[2]))
        case layers.GlobalMaxPool2d() if prod(shape[1:]) <= WHOLE_MAP:
            return layers.MaxPool2d((shape[1], shape[2]))
    return None


def image_shape(shape: Shape) -> tuple[int, int, int]:
    """(F,) as an image of one pixel."""
    assert prod(shape) > 0
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])
