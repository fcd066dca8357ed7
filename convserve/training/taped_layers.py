"""What each trainable layer puts on the tape: its operations forward, and what goes back.

A layer's function adds the forward operations at once and leaves a function that, given where the
gradient by its output is, adds those that compute the gradients by its inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any

from convserve.graph import Graph, Node, layers
from convserve.graph.layers import Operator
from convserve.plan.activations import LINEAR, activation_of
from convserve.training.tape import Maker, Tape

__all__ = ["TRAINABLE", "make_tape"]

IMAGE_INPUT_CHANNELS = 8  # an image with fewer is read as it is, NCHW

_BOUNDS = (layers.ReLU, layers.Clip)
_AT_RESULT = (*_BOUNDS, layers.LeakyReLU)
_CURVES = (
    layers.ELU,
    layers.GELU,
    layers.HardSigmoid,
    layers.HardSwish,
    layers.LeakyReLU,
    layers.SiLU,
    layers.Sigmoid,
    layers.Tanh,
)


def _conv(m: Maker, node: Node) -> None:
    x = m.values[node.inputs[0]]
    assert isinstance(node.op, layers.Conv2d)
    if m.tensors[x].shape[0] >= IMAGE_INPUT_CHANNELS or node.op.groups > 1:
        x = m.blocked(node.inputs[0])
    end, function = m.join(node, _AT_RESULT)

    def back(dy: int) -> None:
        dy = m.unmask(y, function, dy)
        dx = None
        if learns:
            m.op("conv_dw", node, x=x, dy=dy, layer=layer)
        if x in m.trainable:
            dx, add = m.into(x)
            m.op("conv_dx", node, dy=dy, dx=dx, add=add, layer=layer)
        layer.update(dx=dx, dy=dy)

    learns = node.name in m.learning
    y = m.made(end, [x], back, learns)
    layer: dict[str, Any] = {"node": node, "x": x, "y": y, "dx": None, "dy": None}
    m.op("conv", node, x=x, y=y, activation=function, layer=layer)
    if isinstance(end.op, _BOUNDS):
        m.bounds[y] = function


def _affine(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    end, function = m.join(node, _AT_RESULT)

    def back(dy: int) -> None:
        dy = m.unmask(y, function, dy)
        if learns:
            m.op("affine_dw", node, x=x, dy=dy)
        if x in m.trainable:
            dx, add = m.into(x)
            m.op("affine_dx", node, dy=dy, dx=dx, add=add)

    learns = node.name in m.learning
    y = m.made(end, [x], back, learns)
    m.op("affine", node, x=x, y=y, activation=function)


def _batch_norm(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    end, function, r = node, LINEAR, None
    adder = m.only_reader(node.name)
    if adder is not None and isinstance(adder.op, layers.Add):
        other = next(name for name in adder.inputs if name != node.name)
        if other in m.values and m.graph.shape(other) == node.shape:
            r, end = m.blocked(other), adder
            m.joined.add(adder.name)
            end, function = m.join(adder, _AT_RESULT)
    if r is None:
        end, function = m.join(node, (*_BOUNDS, *_CURVES))

    def back(dy: int) -> None:
        slope = (
            "none" if function == LINEAR or y in m.masked else "input" if r is None else "result"
        )
        roles = {"x": x, "dy": dy}
        if slope == "result":
            # The residual's gradient is the masked one too.
            masked = dy if m.owners[dy] == {y} else m.tensor(node.shape)
            m.owners.setdefault(masked, set())
            roles |= {"y": y, "dr": masked}
        else:
            masked = dy
        m.op("norm_sums", node, **roles, activation=function, slope=slope)
        m.op("norm_sums_done", node, x=x)
        if r is not None and r in m.trainable:
            m.pass_on(r, masked)
        if x in m.trainable:
            if masked == dy:
                dx, add = m.in_place(x, y)
            else:
                dx, add = m.into(x)
            m.op(
                "norm_dx", node, x=x, dy=masked, dx=dx, add=add, activation=function,
                slope="input" if slope == "input" else "none",
            )  # fmt: skip

    y = m.made(end, [x] if r is None else [x, r], back, node.name in m.learning)
    m.op("statistics", node, x=x)
    m.op("statistics_done", node, x=x)
    roles = {"x": x, "y": y} | ({} if r is None else {"r": r})
    m.op("norm", node, **roles, activation=function, slope="none")
    if isinstance(end.op, _BOUNDS):
        m.bounds[y] = function


def _activation(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    function = activation_of(node.op) or LINEAR

    def back(dy: int) -> None:
        dx, add = m.in_place(x, y)
        m.op("activate_dx", node, x=x, dy=dy, dx=dx, add=add, activation=function)

    y = m.made(node, [x], back)
    m.op("activate", node, x=x, y=y, activation=function)


def _prelu(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])

    def back(dy: int) -> None:
        if learns:
            m.op("prelu_slopes", node, x=x, dy=dy)
        if x in m.trainable:
            dx, add = m.in_place(x, y)
            m.op("prelu_dx", node, x=x, dy=dy, dx=dx, add=add)

    learns = node.name in m.learning
    y = m.made(node, [x], back, learns)
    m.op("prelu", node, x=x, y=y)


def _pool(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    assert isinstance(node.op, (layers.AvgPool2d, layers.MaxPool2d))
    window = node.op.window([m.tensors[x].shape])
    kind = "max_pool" if isinstance(node.op, layers.MaxPool2d) else "avg_pool"
    mask = LINEAR
    if kind == "max_pool" and x in m.bounds and m.read_only_by(x, node):
        # The largest is within the bounds just where its gradient passes them.
        mask = m.bounds[x]
        m.masked.add(x)

    def back(dy: int) -> None:
        dx, add = m.into(x)
        seen = {"x": x, "y": y} if kind == "max_pool" else {}
        m.op(f"{kind}_dx", node, **seen, dy=dy, dx=dx, add=add, activation=mask, window=window)

    y = m.made(node, [x], back)
    m.op(kind, node, x=x, y=y, window=window)


def _global_pool(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    kind = "global_max" if isinstance(node.op, layers.GlobalMaxPool2d) else "global_avg"

    def back(dy: int) -> None:
        dx, add = m.into(x)
        seen = {"x": x, "y": y} if kind == "global_max" else {}
        m.op(f"{kind}_dx", node, **seen, dy=dy, dx=dx, add=add)

    y = m.made(node, [x], back)
    m.op(kind, node, x=x, y=y)


def _sum(m: Maker, node: Node) -> None:
    a, b = (m.blocked(name) for name in node.inputs)
    kind = "add" if isinstance(node.op, layers.Add) else "sub"

    def back(dy: int) -> None:
        for x, factor in ((a, 1.0), (b, 1.0 if kind == "add" else -1.0)):
            if x not in m.trainable:
                continue
            if factor == 1.0 and m.tensors[x].shape == m.tensors[y].shape:
                m.pass_on(x, dy)
            else:
                dx, add = m.into(x)
                m.op("scale_dx", node, dy=dy, dx=dx, add=add, factor=factor)

    y = m.made(node, [a, b], back)
    m.op("arithmetic", node, x=a, r=b, y=y, arithmetic=kind)


def _mul(m: Maker, node: Node) -> None:
    a, b = (m.blocked(name) for name in node.inputs)

    def back(dy: int) -> None:
        for x, other in ((a, b), (b, a)):
            if x in m.trainable:
                dx, add = m.into(x)
                m.op("multiply_dx", node, dy=dy, r=other, dx=dx, add=add)

    y = m.made(node, [a, b], back)
    m.op("arithmetic", node, x=a, r=b, y=y, arithmetic="mul")


def _dropout(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    assert isinstance(node.op, layers.Dropout)
    if node.op.rate == 0:
        m.values[node.name] = x
        return
    draw = {"rate": node.op.rate, "key": m.dropouts}
    m.dropouts += 1

    def back(dy: int) -> None:
        dx, add = m.in_place(x, y)
        m.op("dropout_dx", node, dy=dy, dx=dx, add=add, **draw)

    y = m.made(node, [x], back)
    m.op("dropout", node, x=x, y=y, **draw)


def _concat(m: Maker, node: Node) -> None:
    inputs = [m.blocked(name) for name in node.inputs]
    starts = [0]
    for x in inputs:
        starts.append(starts[-1] + m.tensors[x].shape[0])

    def back(dy: int) -> None:
        for x, start in zip(inputs, starts, strict=False):
            if x in m.trainable:
                dx, add = m.into(x)
                count = m.tensors[x].shape[0]
                m.op("channels_dx", node, dy=dy, dx=dx, add=add, source=start, count=count)

    y = m.made(node, inputs, back)
    for x, start in zip(inputs, starts, strict=False):
        m.op("channels", node, x=x, y=y, target=start, count=m.tensors[x].shape[0])


def _flatten(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])
    if prod(m.tensors[x].shape[1:]) == 1:  # it is flat already
        m.values[node.name] = x
        return

    def back(dy: int) -> None:
        dx, add = m.into(x)
        m.op("flatten_dx", node, dy=dy, dx=dx, add=add)

    y = m.made(node, [x], back)
    m.op("flatten", node, x=x, y=y)


def _softmax(m: Maker, node: Node) -> None:
    x = m.blocked(node.inputs[0])

    def back(dy: int) -> None:
        dx, add = m.into(x)
        m.op("softmax_dx", node, y=y, dy=dy, dx=dx, add=add)

    y = m.made(node, [x], back)
    m.op("softmax", node, x=x, y=y)


_FORWARD: dict[type[Operator], Callable[[Maker, Node], None]] = {
    layers.Add: _sum,
    layers.Affine: _affine,
    layers.AvgPool2d: _pool,
    layers.BatchNorm: _batch_norm,
    layers.Concat: _concat,
    layers.Conv2d: _conv,
    layers.Dropout: _dropout,
    layers.Flatten: _flatten,
    layers.GlobalAvgPool2d: _global_pool,
    layers.GlobalMaxPool2d: _global_pool,
    layers.MaxPool2d: _pool,
    layers.Mul: _mul,
    layers.PReLU: _prelu,
    layers.Softmax: _softmax,
    layers.Sub: _sum,
    **dict.fromkeys((*_BOUNDS, *_CURVES), _activation),
}

TRAINABLE = frozenset(_FORWARD)


def make_tape(
    graph: Graph, trained: Mapping[str, Node], logits: str, learning: Collection[str]
) -> Tape:
    """The tape of the layers `trained`, in topological order; their last output is `logits`.

    learning: those whose parameters get gradients.
    """
    m = Maker(graph, trained, logits, learning)
    for node in trained.values():
        if node.name not in m.joined:
            _FORWARD[type(node.op)](m, node)
    dx, _ = m.into(m.values[logits])
    m.op("loss", x=m.values[logits], dx=dx)
    for y, back in reversed(m.back):
        grad = m.grads[y]
        back(grad)
        m.owners[grad].discard(y)
    return Tape(m.tensors, m.ops, m.dropouts)
