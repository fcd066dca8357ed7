"""Convolution, pooling, padding and what else looks at an image's neighbourhoods."""

from __future__ import annotations

import numpy as np

from convserve.convert.call import Call, Nodes
from convserve.convert.layout import Atom, Layout, join
from convserve.convert.values import Feature, Layer, Pending, Unsupported
from convserve.convert.views import axis_kind, order, plain
from convserve.errors import ConversionError
from convserve.graph import layers as ops
from convserve.kernels._arguments import Pair, Sides

__all__ = ["NODES", "crop"]


def _window(call: Call, x: Layer, kernel: Pair, dilations: Pair) -> tuple[Pair, Sides]:
    """Stride and padding from the attributes; `auto_pad` is worked out for this image's size."""
    strides = _pair(call, "strides", 1)
    pads = call.attributes.integers("pads", [0, 0, 0, 0])
    if len(pads) != 4:
        raise ConversionError(f"its pads must be four numbers, got {pads!s:.80}")
    mode = call.attributes.string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for size, k, stride, dilation in zip(x.shape[1:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
            less, more = total // 2, total - total // 2
            sides.append((less, more) if mode == "SAME_UPPER" else (more, less))
        return strides, (sides[0], sides[1])
    if mode == "VALID":
        return strides, ((0, 0), (0, 0))
    if mode != "NOTSET":
        raise ConversionError(f"its auto_pad {mode!r:.80} is unknown")
    return strides, ((pads[0], pads[2]), (pads[1], pads[3]))


def _pair(call: Call, name: str, default: int) -> Pair:
    values = call.attributes.integers(name, [default, default])
    if len(values) != 2 or min(values) < 1:
        raise ConversionError(f"its {name} must be two numbers from 1, got {values!s:.80}")
    return values[0], values[1]


def _conv(call: Call) -> Feature:
    x, weight, bias = call.image(), call.constant(1), call.optional(2, 1)
    if weight.ndim != 4:
        raise Unsupported(f"it needs convolution in {weight.ndim - 2} dimensions")
    kernel = weight.shape[2], weight.shape[3]
    if call.attributes.integers("kernel_shape", list(kernel)) != list(kernel):
        raise ConversionError(f"its kernel_shape is not that of its weight, {kernel}")
    dilations = _pair(call, "dilations", 1)
    strides, padding = _window(call, x, kernel, dilations)
    conv = ops.Conv2d(
        weight.shape[0], kernel, strides, padding, dilations, call.attributes.integer("group", 1),
        bias=bias is not None, rounding="floor",
    )  # fmt: skip
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return Feature.of(call.build.add(conv, x, params=params))


def _local_mean(call: Call, x: Feature) -> Feature:
    """Average pooling over neighbouring channels in three dimensions, inside an LRN."""
    size, *rest = call.attributes.integers("kernel_shape")
    plain = all(
        set(call.attributes.integers(name, [default])) == {default}
        for name, default in (("strides", 1), ("pads", 0), ("dilations", 1))
    )
    call.attributes.ignore("ceil_mode", "count_include_pad", "auto_pad")
    channels = axis_kind(x, 1) == "channels" and x.shape[0] == 1 and len(x.shape) == 4
    if set(rest) != {1} or not plain or not channels or not 0 < size <= x.layer.channels:
        raise Unsupported("it needs pooling in three dimensions")
    return _other_channels(x, call.build.add(Pending("local_mean", size=size), x.layer), 1)


def _pool(call: Call) -> Feature:
    call.one_output()
    padded = call.value(0)
    if isinstance(padded, Feature) and padded.layer.is_a("padded"):
        if call.op_type == "AveragePool":
            return _local_mean(call, padded)
        raise Unsupported("it needs padding of the channels")
    call.attributes.ignore("storage_order")  # of the second output
    x, size = call.image(), _pair(call, "kernel_shape", 0)
    if _pair(call, "dilations", 1) != (1, 1):
        raise Unsupported("it needs dilated pooling")
    ceil = bool(call.attributes.integer("ceil_mode", 0))
    strides, padding = _window(call, x, size, (1, 1))
    rounding = "ceil" if ceil else "floor"
    if call.op_type == "MaxPool":
        pool: ops.Operator = ops.MaxPool2d(size, strides, padding, rounding)
    else:
        counted = bool(call.attributes.integer("count_include_pad", 0))
        pool = ops.AvgPool2d(size, strides, padding, rounding, counted)
    return Feature.of(call.build.add(pool, x))


def _global_pool(call: Call) -> Feature:
    average = call.op_type == "GlobalAveragePool"
    op = ops.GlobalAvgPool2d() if average else ops.GlobalMaxPool2d()
    return Feature.of(call.build.add(op, call.image()))


def _lrn(call: Call) -> Feature:
    a = call.attributes
    lrn = ops.LRN(
        a.integer("size"), a.number("alpha", 1e-4), a.number("beta", 0.75), a.number("bias", 1.0)
    )
    return Feature.of(call.build.add(lrn, call.image()))


def _pad(call: Call) -> Feature:
    x = call.feature()
    mode = call.attributes.string("mode", "constant")
    if mode != "constant":
        raise Unsupported(f"it needs padding of the mode {mode!r:.40}")
    rank = len(x.shape) + 1
    if call.opset < 11:
        pads, value = call.attributes.integers("pads"), call.attributes.number("value", 0.0)
        axes = list(range(rank))
    else:
        given = call.integers(1)
        pads, value = given or [], call.number(2) or 0.0
        chosen = call.integers(3)
        axes = list(range(rank)) if chosen is None else chosen
    if len(pads) != 2 * len(axes) or any(not -rank <= axis < rank for axis in axes):
        raise ConversionError(f"its pads {pads!s:.80} do not fit {rank} axes")
    wanted = {
        axis % rank: (before, after)
        for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True)
    }
    for axis in [axis for axis, sides in wanted.items() if sides == (0, 0)]:
        del wanted[axis]
    if 0 in wanted:
        raise Unsupported("it pads the batch")
    return _pad_sides(call, x, {axis - 1: sides for axis, sides in wanted.items()}, value)


def _pad_sides(call: Call, x: Feature, wanted: dict[int, Pair], value: float) -> Feature:
    if not wanted:
        return x
    if x.layer.is_a("square") and len(wanted) == 1 and value == 0:
        ((axis, (before, after)),) = wanted.items()
        if axis_kind(x, axis) == "channels" and min(before, after) >= 0:
            padded = call.build.add(Pending("padded", before, after), x.layer)
            return _other_channels(x, padded, axis)
    x, places = _axes(call, x)
    by_axis = {places[axis]: sides for axis, sides in wanted.items()}
    if 0 in by_axis:
        raise Unsupported("it needs padding of the channels")
    (top, bottom), (left, right) = by_axis.get(1, (0, 0)), by_axis.get(2, (0, 0))
    layer = x.layer
    if min(top, bottom, left, right) < 0:
        cut = (max(0, -top), max(0, -bottom)), (max(0, -left), max(0, -right))
        layer = call.build.add(ops.Crop(cut), layer)
    if max(top, bottom, left, right) > 0:
        if not np.isfinite(value):
            raise Unsupported(f"it needs padding with {value}")
        grow = (max(0, top), max(0, bottom)), (max(0, left), max(0, right))
        layer = call.build.add(ops.Pad(grow, value), layer)
    return Feature(layer, Layout.natural(layer.shape).transpose(places))


def _other_channels(x: Feature, layer: Layer, axis: int) -> Feature:
    """The tensor over a layer that differs from its own in the number of channels, one axis."""
    axes = list(x.layout.axes)
    axes[axis] = join([Atom(layer.channels, layer.pixels)])
    return Feature(layer, Layout(tuple(axes)))


def _axes(call: Call, x: Feature) -> tuple[Feature, tuple[int, ...]]:
    """The tensor over an image whose axes its own are, and which ones."""
    places = order(x)
    if places is None:
        x = plain(call.build, x)
        places = order(x)
    if places is None or len(places) != 3:
        raise Unsupported("it needs an image's height and width as axes of their own")
    return x, places


def crop(call: Call, x: Feature, axis: int, start: int, stop: int) -> Feature:
    """The part from start to stop of an axis that is the height or the width."""
    x, places = _axes(call, x)
    before, after = start, x.shape[axis] - stop
    sides = ((before, after), (0, 0)) if places[axis] == 1 else ((0, 0), (before, after))
    layer = call.build.add(ops.Crop(sides), x.layer)
    return Feature(layer, Layout.natural(layer.shape).transpose(places))


NODES: Nodes = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LRN": _lrn,
    "Pad": _pad,
}
