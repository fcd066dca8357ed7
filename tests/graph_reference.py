"""Runs a graph on the naive kernels in float64, with a bound of the float32 error of each value."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference

from convserve.graph import Graph, layers

Array = np.ndarray[Any, Any]


def evaluate(graph: Graph, params: dict[str, Array], x: Array) -> dict[str, Array]:
    """Every layer's output, float64[N, ...]."""
    values: dict[str, Array] = {graph.input_name: x.astype(np.float64)}
    for node in graph.nodes:
        inputs = [values[source] for source in node.inputs]
        values[node.name] = _layer(node.op, inputs, _of(params, node.name))
    return values


def error_bounds(graph: Graph, params: dict[str, Array], x: Array) -> dict[str, Array]:
    """An upper bound of each value's float32 error, whatever the order of sums and the fusion.

    The same network on absolute values gives the sum of all terms' sizes; each rounding on the way
    to a value, as many as its sums have terms, adds at most half a unit in the last place of it.
    """
    size: dict[str, Array] = {graph.input_name: np.abs(x.astype(np.float64))}
    terms = {graph.input_name: 1}
    for node in graph.nodes:
        inputs = [size[source] for source in node.inputs]
        own = {name: np.abs(p) for name, p in _of(params, node.name).items()}
        if isinstance(node.op, layers.BatchNorm):
            own["running_mean"] = -own["running_mean"]  # |x| + |mean|
            own["running_var"] = _of(params, node.name)["running_var"]
        if isinstance(node.op, layers.Softmax):
            # d softmax <= 2 |d logits|, and its own roundings
            terms[node.name] = 2 * terms[node.inputs[0]] + 10 * node.shape[0]
            size[node.name] = np.broadcast_to(
                inputs[0].max(axis=1, keepdims=True) + 1, (len(x), *node.shape)
            )
            continue
        size[node.name] = _layer(node.op, inputs, own)
        terms[node.name] = max(terms[source] for source in node.inputs) + _terms(node.op, own)
    return {name: reference.tolerance(2 * terms[name] + 8, value) for name, value in size.items()}


def _of(params: dict[str, Array], layer: str) -> dict[str, Array]:
    return {
        name.removeprefix(f"{layer}."): value
        for name, value in params.items()
        if name.rpartition(".")[0] == layer
    }


def _terms(op: layers.Operator, own: dict[str, Array]) -> int:
    if isinstance(op, layers.AvgPool2d):
        return int(np.prod(op.size)) + 2
    if isinstance(op, layers.GlobalAvgPool2d):
        return 10_000
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
        case layers.ReLU():
            return reference.relu(x)
        case layers.Softmax():
            return reference.softmax(x)
        case layers.BatchNorm():
            moments = p["running_mean"], p["running_var"]
            return reference.batch_norm(x, *moments, p["weight"], p["bias"], op.eps)
        case layers.Dropout():
            return x
        case layers.Add():
            return inputs[0] + inputs[1]
        case layers.Concat():
            return np.concatenate(inputs, axis=1)
    raise AssertionError(op)
