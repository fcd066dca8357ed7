"""Matrix products, normalisation, means and softmax: what works along the channels."""

from __future__ import annotations

import numpy as np

from convserve.convert.call import Call, Nodes
from convserve.convert.layout import Atom, Layout, join
from convserve.convert.values import Array, Feature, Pending, Unsupported
from convserve.convert.views import axis_kind, flat, in_order, order, plain, pooled
from convserve.errors import ConversionError
from convserve.graph import layers as ops

__all__ = ["NODES"]


def _gemm(call: Call) -> Feature:
    a = call.attributes
    alpha, beta = a.number("alpha", 1.0), a.number("beta", 1.0)
    if a.integer("transA", 0):
        raise Unsupported("it needs its first input transposed, which mixes the batch")
    weight, bias = call.constant(1, 2), call.optional(2)
    weight = weight if a.integer("transB", 0) else weight.T
    if alpha != 1.0:
        weight = weight * np.float32(alpha)
    if bias is not None:
        if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
            raise Unsupported(f"its bias of shape {bias.shape} differs within the batch")
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (weight.shape[0],))
    x = call.feature()
    if len(x.shape) != 1:
        raise ConversionError(f"its input must have 2 axes, it has {len(x.shape) + 1}")
    return _affine(call, x, weight, bias)


def _affine(call: Call, x: Feature, weight: Array, bias: Array | None) -> Feature:
    """x · weightᵀ + bias of a row; a row in another order than in memory reorders the weight."""
    layer, places = flat(call.build, x)
    if weight.shape[1] != layer.channels:
        raise ConversionError(
            f"its weight is for {weight.shape[1]} features, its input has {layer.channels}"
        )
    if places is not None:
        reordered = np.empty_like(weight)
        reordered[:, places] = weight
        weight = reordered
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    op = ops.Affine(weight.shape[0], bias=bias is not None)
    return Feature.of(call.build.add(op, layer, params=params))


def _matmul(call: Call) -> Feature:
    """By a constant matrix along the last axis: an affine layer, or a 1×1 convolution."""
    x, weight = call.feature(), call.constant(1)
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    if weight.ndim != 2:
        raise Unsupported(f"it needs a product with a constant of shape {weight.shape}")
    if len(x.shape) == 1:
        return _affine(call, x, weight.T, None)
    axis = len(x.shape) - 1
    if axis_kind(x, axis) != "channels" or len(x.layer.shape) != 3:
        raise Unsupported("it needs a matrix product along another axis than the channels")
    filters = np.ascontiguousarray(weight.T)[:, :, None, None]
    conv = ops.Conv2d(weight.shape[1], 1, bias=False, rounding="floor")
    layer = call.build.add(conv, x.layer, params={"weight": filters})
    channels = join([Atom(layer.channels, layer.pixels)])
    return Feature(layer, Layout((*x.layout.axes[:axis], channels)))


def _batch_norm(call: Call) -> Feature:
    a = call.attributes
    a.ignore("momentum")
    # Before opset 14 the outputs after the first are what tells training from inference.
    if a.integer("training_mode", 0) or (call.opset < 14 and call.outputs > 1):
        raise Unsupported("it is in training mode")
    call.one_output()
    if not a.integer("spatial", 1):
        raise Unsupported("it needs statistics for each pixel")
    x = call.feature()
    if len(x.shape) not in (1, 3) or axis_kind(x, 0) != "channels":
        x = plain(call.build, x)
    if axis_kind(x, 0) != "channels":
        raise Unsupported("it needs batch norm along another axis than the channels")
    weight, bias, mean, var = (call.constant(place, 1) for place in range(1, 5))
    params = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    norm = ops.BatchNorm(a.number("epsilon", 1e-5))
    return x.on(call.build.add(norm, x.layer, params=params))


def _layer_norm(call: Call) -> Feature:
    call.one_output()
    if call.attributes.integer("stash_type", 1) != 1:
        raise Unsupported("it needs sums in another type than float32")
    x = call.feature()
    first = call.axis(call.attributes.integer("axis", -1))
    eps = call.attributes.number("epsilon", 1e-5)
    normalised = x.layout.axes[first:]
    joined = join([atom for axis in normalised for atom in axis])
    if joined != join([Atom(x.layer.channels, x.layer.pixels)]):
        raise Unsupported("it needs layer norm over other axes than the channels")
    count = (x.layer.channels,)
    weight = call.constant(1).reshape(count)
    given = call.optional(2)
    bias = np.zeros(count, np.float32) if given is None else given.reshape(count)
    norm = ops.LayerNorm(eps)
    return x.on(call.build.add(norm, x.layer, params={"weight": weight, "bias": bias}))


def _softmax(call: Call) -> Feature:
    x = call.feature()
    axis = call.axis(call.attributes.integer("axis", -1 if call.opset >= 13 else 1))
    if call.opset < 13 and axis != 0 and any(size > 1 for size in x.shape[:axis]):
        raise Unsupported("it works across the images of a batch")
    over = x.shape[axis : axis + 1] if call.opset >= 13 else x.shape[axis:]
    layer = in_order(call.build, x) if sum(s > 1 for s in x.shape) <= 1 else None
    if layer is None or np.prod(over) != layer.channels:
        raise Unsupported("it needs a softmax for each pixel, or over an image")
    op = ops.Softmax() if call.op_type == "Softmax" else ops.LogSoftmax()
    made = Feature.of(call.build.add(op, layer))
    layout = made.layout.reshape(x.shape)
    assert layout is not None
    return Feature(made.layer, layout)


def _reduce(call: Call) -> Feature:
    """The mean or the largest value over pixels; the mean over the channels, inside a pattern."""
    x, keep = call.feature(), bool(call.attributes.integer("keepdims", 1))
    axes = call.integers(1)
    if axes is None:
        axes = call.attributes.integers("axes", [])
    if not axes:
        if call.attributes.integer("noop_with_empty_axes", 0):
            return x
        raise Unsupported("it works across the images of a batch")
    call.attributes.ignore("noop_with_empty_axes")
    chosen = {call.axis(axis) for axis in axes}
    chosen_atoms = [atom for axis in sorted(chosen) for atom in x.layout.axes[axis]]
    if not chosen_atoms:
        return pooled(x, x.layer, chosen, keep)
    layer, mean = x.layer, call.op_type == "ReduceMean"
    if mean and join(sorted(chosen_atoms, key=lambda atom: -atom.stride)) == join(
        [Atom(layer.channels, layer.pixels)]
    ):
        made = call.build.add(Pending("mean"), layer)
        return pooled(x, made, chosen, keep)
    if any(axis_kind(x, axis) != "pixels" for axis in chosen if x.layout.axes[axis]):
        raise Unsupported("it needs a mean or largest value over other axes than the pixels")
    if np.prod([atom.size for atom in chosen_atoms]) == layer.pixels:
        made = call.build.add(ops.GlobalAvgPool2d() if mean else ops.GlobalMaxPool2d(), layer)
        return pooled(x, made, chosen, keep)
    return _reduce_side(call, x, chosen, keep)


def _reduce_side(call: Call, x: Feature, chosen: set[int], keep: bool) -> Feature:
    """Over the height alone, or the width."""
    places = order(x)
    if places is None:
        raise Unsupported("it needs an image's height and width as axes of their own")
    sides = {places[axis] for axis in chosen}
    height, width = x.layer.shape[1:]
    size = height if 1 in sides else 1, width if 2 in sides else 1
    mean = call.op_type == "ReduceMean"
    pool = ops.AvgPool2d(size) if mean else ops.MaxPool2d(size)
    layer = call.build.add(pool, x.layer)
    axes = Layout.natural(layer.shape).transpose(places).axes
    return Feature(
        layer, Layout(tuple(a for place, a in enumerate(axes) if keep or place not in chosen))
    )


NODES: Nodes = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
}
