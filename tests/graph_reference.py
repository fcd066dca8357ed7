"""Runs a graph on the naive kernels in float64, with a bound of the float32 error of each value."""

from __future__ import annotations

from typing import Any

import numpy as np
import operator_reference as operators
import reference

from convserve.graph import Graph, layers

Array = np.ndarray[Any, Any]


Inputs = Array | dict[str, Array]  # several by name


def _named(graph: Graph, x: Inputs) -> dict[str, Array]:
    return (
        {name: a.astype(np.float64) for name, a in x.items()}
        if isinstance(x, dict)
        else {graph.input_name: x.astype(np.float64)}
    )


def evaluate(graph: Graph, params: dict[str, Array], x: Inputs) -> dict[str, Array]:
    """Every layer's output, float64[N, ...]."""
    values = _named(graph, x)
    for node in graph.nodes:
        inputs = [values[source] for source in node.inputs]
        values[node.name] = _layer(node.op, inputs, _of(params, node.name))
    return values


def error_bounds(graph: Graph, params: dict[str, Array], x: Inputs) -> dict[str, Array]:
    """An upper bound of each value's float32 error, whatever the order of sums and the fusion.

    The same network on absolute values gives the sum of all terms' sizes; each rounding on the way
    to a value, as many as its sums have terms, adds at most half a unit in the last place of it.
    """
    value = evaluate(graph, params, x)
    size = {name: np.abs(given) for name, given in _named(graph, x).items()}
    terms = dict.fromkeys(size, 1)
    for node in graph.nodes:
        inputs = [size[source] for source in node.inputs]
        own = {name: np.abs(p) for name, p in _of(params, node.name).items()}
        if isinstance(node.op, layers.BatchNorm):
            own["running_mean"] = -own["running_mean"]  # |x| + |mean|
            own["running_var"] = _of(params, node.name)["running_var"]
        size[node.name] = _size(node.op, inputs, [value[name] for name in node.inputs], own)
        before = [terms[source] for source in node.inputs]
        if isinstance(node.op, layers.Mul):
            terms[node.name] = sum(before) + 2
        elif isinstance(node.op, layers.Softmax | layers.LogSoftmax):
            # d softmax <= 2 |d logits|, and its own roundings
            terms[node.name] = 2 * before[0] + 10 * node.shape[0]
        else:
            terms[node.name] = max(before) + _terms(node.op, own, inputs[0].shape[1:])
    return {name: reference.tolerance(2 * terms[name] + 8, value) for name, value in size.items()}


def _size(
    op: layers.Operator, sizes: list[Array], values: list[Array], own: dict[str, Array]
) -> Array:
    """The layer on sums of absolute terms: what an error of its inputs may grow to."""
    x = sizes[0]
    match op:
        case layers.Softmax() | layers.LogSoftmax():
            top = 2 * x.max(axis=1, keepdims=True) + 1 + np.log(x.shape[1])
            return np.broadcast_to(top, x.shape)
        case layers.Conv2d(kernel_size=(3, 3)):
            # Winograd tiles mix the terms of neighbouring pixels
            out = _layer(op, sizes, own)
            return np.broadcast_to(out.max(axis=(2, 3), keepdims=True), out.shape)
        case layers.Sub():
            return sizes[0] + sizes[1]
        case layers.PReLU():
            slope = np.maximum(own["slope"], 1).reshape(-1, *[1] * (x.ndim - 2))
            return x * slope
        case layers.LayerNorm():
            deviation = np.sqrt(values[0].var(axis=1, keepdims=True) + op.eps)
            like = (-1,) + (1,) * (x.ndim - 2)
            spread = (2 + np.sqrt(x.shape[1])) * x.max(axis=1, keepdims=True) / deviation
            return spread * own["weight"].reshape(like) + own["bias"].reshape(like)
        case layers.LRN():
            base = operators.lrn_base(values[0], op)
            change = (operators.lrn_base(np.abs(values[0]), op, x) - op.bias) / base
            return x * base**-op.beta * (1 + 2 * abs(op.beta) * change)
        case layers.Pad():
            return operators.pad(x, op.padding, abs(op.value))
        case (
            layers.ReLU() | layers.LeakyReLU() | layers.Clip() | layers.Sigmoid() | layers.Tanh()
            | layers.HardSigmoid() | layers.HardSwish() | layers.SiLU() | layers.GELU()
            | layers.ELU()
        ):  # fmt: skip
            at_zero = abs(float(operators.activation(op, np.zeros(1))[0]))
            return x * operators.slope(op) + at_zero + abs(getattr(op, "beta", 0.0))
    return _layer(op, sizes, own)


def _of(params: dict[str, Array], layer: str) -> dict[str, Array]:
    return {
        name.removeprefix(f"{layer}."): value
        for name, value in params.items()
        if name.rpartition(".")[0] == layer
    }


def _terms(op: layers.Operator, own: dict[str, Array], shape: tuple[int, ...]) -> int:
    if isinstance(op, layers.LayerNorm):
        return 4 * shape[0] + 20
    if isinstance(op, layers.LRN):
        return 2 * min(op.size, shape[0]) + 40
    if isinstance(op, layers.AvgPool2d):
        return int(np.prod(op.size)) + 2
    if isinstance(op, layers.GlobalAvgPool2d):
        return int(np.prod(shape[1:])) + 2
    return int(np.prod(own["weight"].shape[1:])) + 6 if "weight" in own else 6


def _layer(op: layers.Operator, inputs: list[Array], p: dict[str, Array]) -> Array:
    x = inputs[0]
    match op:
        case layers.Conv2d():
            geometry = op.stride, op.padding, op.dilation, op.groups, op.rounding
            return reference.conv2d(x, p["weight"], p.get("bias"), *geometry)
        case layers.MaxPool2d():
            return reference.max_pool2d(x, op.size, op.stride, op.padding, op.rounding)
        case layers.AvgPool2d():
            geometry = op.size, op.stride, op.padding, op.rounding
            return reference.avg_pool2d(x, *geometry, op.count_include_pad)
        case layers.GlobalAvgPool2d():
            return reference.global_avg_pool2d(x)
        case layers.Affine():
            return reference.affine(x, p["weight"], p.get("bias"))
        case layers.Flatten():
            return x.reshape(len(x), -1)
        case layers.Softmax():
            return reference.softmax(x)
        case layers.BatchNorm():
            moments = p["running_mean"], p["running_var"]
            return reference.batch_norm(x, *moments, p["weight"], p["bias"], op.eps)
        case layers.Dropout():
            return x
        case layers.Add():
            return inputs[0] + inputs[1]
        case layers.Sub():
            return inputs[0] - inputs[1]
        case layers.Mul():
            return inputs[0] * inputs[1]
        case layers.Concat():
            return np.concatenate(inputs, axis=1)
        case layers.Slice():
            return x[:, op.start : op.stop]
        case layers.ChannelShuffle():
            return operators.channel_shuffle(x, op.groups)
        case layers.Pad():
            return operators.pad(x, op.padding, op.value)
        case layers.Crop():
            return operators.crop(x, op.padding)
        case layers.GlobalMaxPool2d():
            return x.max(axis=(2, 3), keepdims=True)
        case layers.LRN():
            return x * operators.lrn_base(x, op) ** -op.beta
        case layers.LayerNorm():
            return operators.layer_norm(x, p["weight"], p["bias"], op.eps)
        case layers.ScaleShift():
            like = (-1,) + (1,) * (x.ndim - 2)
            return x * p["scale"].reshape(like) + p["shift"].reshape(like)
        case layers.PReLU():
            return np.where(x > 0, x, x * p["slope"].reshape(-1, *[1] * (x.ndim - 2)))
        case layers.LogSoftmax():
            return operators.log_softmax(x)
    return operators.activation(op, x)
