"""Functions of single values, and arithmetic with constants and between tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from convserve.convert import patterns
from convserve.convert.call import Call, Nodes
from convserve.convert.layout import Atom, Layout
from convserve.convert.tensors import dtype_of, type_name
from convserve.convert.values import Array, Feature, Known, Layer, Layers, Pending, Unsupported
from convserve.convert.views import image, per_channel, plain
from convserve.errors import ConversionError, ShapeError
from convserve.graph import layers as ops
from convserve.graph.layers import Operator

__all__ = ["NODES"]


def _identity(call: Call) -> Feature:
    call.one_output()
    return call.feature()


def _dropout(call: Call) -> Feature:
    call.attributes.ignore("ratio", "seed", "is_test")
    training = call.known(2)
    if training is not None and any(variant.any() for variant in training):
        raise Unsupported("it is in training mode")
    return _identity(call)


def _cast(call: Call) -> Feature:
    call.attributes.ignore("saturate", "round_mode")
    to = call.attributes.integer("to")
    if dtype_of(to) != np.float32:
        raise Unsupported(f"it needs values of the type {type_name(to)}")
    return call.feature()


def _simple(make: Callable[[Call], Operator]) -> Callable[[Call], Feature]:
    return lambda call: call.unary(make(call))


def _clip(call: Call) -> Feature:
    if call.opset < 11:
        low, high = call.attributes.number("min", -np.inf), call.attributes.number("max", np.inf)
    else:
        given = call.number(1), call.number(2)
        low = -np.inf if given[0] is None else given[0]
        high = np.inf if given[1] is None else given[1]
    return _clipped(call, call.feature(), low, high)


def _clipped(call: Call, x: Feature, low: float, high: float) -> Feature:
    bounds = None if low <= np.finfo(np.float32).min else low
    upper = None if high >= np.finfo(np.float32).max else high
    if bounds is None and upper is None:
        return x
    if bounds == 0 and upper is None:
        return x.on(call.build.add(ops.ReLU(), x.layer))
    return x.on(call.build.add(ops.Clip(bounds, upper), x.layer))


def _limit(call: Call) -> Feature:
    """Max or Min of the tensor and a number."""
    if len(call.inputs) != 2:
        raise Unsupported("it needs the largest or smallest of several tensors")
    place = 0 if isinstance(call.value(0), Feature) else 1
    bound = call.number(1 - place)
    if bound is None or np.isnan(bound):
        raise ConversionError("its bound is no number")
    low, high = (bound, np.inf) if call.op_type == "Max" else (-np.inf, bound)
    return _clipped(call, call.feature(place), low, high)


def _prelu(call: Call) -> Feature:
    x = call.feature()
    slope = per_channel(x, call.constant(1))
    return x.on(call.build.add(ops.PReLU(), x.layer, params={"slope": slope}))


def _selu(call: Call) -> Feature:
    alpha = call.attributes.number("alpha", 1.67326319217681884765625)
    gamma = call.attributes.number("gamma", 1.05070102214813232421875)
    x = call.feature()
    elu = call.build.add(ops.ELU(alpha), x.layer)
    return x.on(patterns.scale_shift(call.build, elu, gamma))


def _gelu(call: Call) -> Operator:
    return ops.GELU(call.attributes.string("approximate", "none"))


def _swish(call: Call) -> Feature:
    x, alpha = call.feature(), call.attributes.number("alpha", 1.0)
    if not alpha:
        raise Unsupported("it needs Swish with alpha 0")
    scaled = patterns.scale_shift(call.build, x.layer, alpha)
    silu = call.build.add(ops.SiLU(), scaled)
    return x.on(patterns.scale_shift(call.build, silu, 1 / alpha))


def _step(kind: str) -> Callable[[Call], Feature]:
    return lambda call: call.unary(Pending(kind))


def _negate(call: Call) -> Feature:
    x = call.feature()
    return x.on(patterns.scale_shift(call.build, x.layer, -1.0))


def _reciprocal(call: Call) -> Feature:
    x = call.feature()
    if not x.layer.is_a("sqrt"):
        raise Unsupported("it needs the reciprocal of a tensor")
    return x.on(call.build.add(Pending("reciprocal_sqrt"), x.layer.inputs[0]))


def _power(call: Call) -> Feature:
    x, given = call.feature(), call.value(1)
    if isinstance(given, Known) and np.issubdtype(given.array.dtype, np.integer):
        given = Known((given.array.astype(np.float32),))
        call = replace(call, inputs=[call.inputs[0], given])
    exponent = call.number(1)
    layer = patterns.power(call.build, x.layer, 1.0 if exponent is None else exponent)
    if layer is None:
        raise Unsupported(f"it needs the power {exponent} of a tensor")
    return x.on(layer)


def _arithmetic(call: Call) -> Feature:
    if len(call.inputs) != 2:
        raise ConversionError(f"it must have two inputs, it has {len(call.inputs)}")
    a, b = call.value(0), call.value(1)
    if isinstance(a, Feature) and isinstance(b, Feature):
        return _between(call.build, call.op_type, a, b)
    if isinstance(a, Feature):
        return _with_constant(call, a, call.constant(1), reverse=False)
    return _with_constant(call, call.feature(1), call.constant(0), reverse=True)


def _with_constant(call: Call, x: Feature, constant: Array, reverse: bool) -> Feature:
    c = per_channel(x, constant)
    if call.op_type == "Add":
        scale, shift = np.ones_like(c), c
    elif call.op_type == "Sub":
        scale, shift = (-np.ones_like(c), c) if reverse else (np.ones_like(c), -c)
    elif call.op_type == "Mul":
        scale, shift = c, np.zeros_like(c)
    elif reverse:
        if not x.layer.is_a("sqrt") or not (c == 1).all():
            raise Unsupported("it needs a constant divided by a tensor")
        return x.on(call.build.add(Pending("reciprocal_sqrt"), x.layer.inputs[0]))
    elif not c.all():
        raise Unsupported("it divides by zero")
    else:
        scale, shift = 1 / c, np.zeros_like(c)
    return x.on(patterns.scale_shift(call.build, x.layer, scale, shift))


def _between(build: Layers, op_type: str, a: Feature, b: Feature) -> Feature:
    """Arithmetic of two tensors: as they lie where they lie alike, else in the usual order."""
    for x, y in ((a, b), (plain(build, a), plain(build, b))):
        found = _together(build, x, y)
        if found is not None:
            first, second, layout = found
            return Feature(_combine(build, op_type, first, second), layout)
    if len(a.shape) != len(b.shape):
        raise Unsupported(f"it needs {('N', *a.shape)} with {('N', *b.shape)}")
    raise Unsupported(
        f"it needs tensors of {('N', *a.shape)} and {('N', *b.shape)} combined: they must have "
        "the same shape and order, or one of them be (N, C, 1, 1)"
    )


def _together(build: Layers, a: Feature, b: Feature) -> tuple[Layer, Layer, Layout] | None:
    """The layers to combine value by value, and how the result lies; None if they lie apart."""
    if len(a.shape) != len(b.shape):
        return None
    if a.layer.shape == b.layer.shape and a.layout == b.layout:
        return a.layer, b.layer, a.layout
    if a.shape == b.shape:  # (F,) with (F, 1, 1)
        if a.layout == b.layout and a.layer.pixels == b.layer.pixels == 1:
            layers = [x.layer if len(x.layer.shape) == 3 else _pixel(build, x) for x in (a, b)]
            return layers[0], layers[1], a.layout
        return None
    layer = _broadcast(build, a, b)
    if layer is not None:
        return a.layer, layer, a.layout
    layer = _broadcast(build, b, a)
    return None if layer is None else (layer, b.layer, b.layout)


def _broadcast(build: Layers, large: Feature, small: Feature) -> Layer | None:
    """The layer of one value a channel (or a pixel) that goes with all of a larger tensor."""
    if len(large.layer.shape) != 3:
        return None
    pixels = large.layer.pixels
    by_channel = tuple(
        tuple(Atom(size, stride // pixels) for size, stride in axis if stride % pixels == 0)
        for axis in large.layout.axes
    )
    whole = all(
        stride % pixels == 0 or (size - 1) * stride < pixels
        for axis in large.layout.axes
        for size, stride in axis
    )
    if not whole:
        return None
    if small.layer.pixels == 1 and small.layout.axes == by_channel:
        if small.layer.channels != large.layer.channels:
            return None
        return small.layer if len(small.layer.shape) == 3 else _pixel(build, small)
    by_pixel = tuple(
        tuple(atom for atom in axis if atom.stride % pixels) for axis in large.layout.axes
    )
    spatial = (1, *large.layer.shape[1:])
    matches = small.layer.shape == spatial and small.layout.axes == by_pixel
    return small.layer if matches else None


def _pixel(build: Layers, x: Feature) -> Layer:
    layer = x.layer
    as_pixel = Feature(layer, Layout.natural((layer.channels, 1, 1)))
    return image(build, as_pixel)


def _combine(build: Layers, op_type: str, a: Layer, b: Layer) -> Layer:
    made: Layer | None
    try:
        if op_type == "Mul":
            made = patterns.multiply(build, a, b)
        elif op_type == "Sub":
            made = patterns.subtract(build, a, b)
        elif op_type == "Div":
            made = patterns.divide(build, a, b)
        else:
            made = build.add(ops.Add(), a, b)
    except ShapeError:
        raise Unsupported("it needs one value a pixel combined with all channels") from None
    if made is None:
        raise Unsupported("it needs a tensor divided by a tensor")
    return made


def _sum(call: Call) -> Feature:
    values = [value for value in call.inputs if value is not None]
    if any(isinstance(value, Known) for value in values):
        raise Unsupported("it needs a sum of tensors and constants")
    total = call.feature(0)
    for place in range(1, len(values)):
        total = _between(call.build, "Add", total, call.feature(place))
    return total


NODES: Nodes = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Relu": _simple(lambda call: ops.ReLU()),
    "LeakyRelu": _simple(lambda call: ops.LeakyReLU(call.attributes.number("alpha", 0.01))),
    "Sigmoid": _simple(lambda call: ops.Sigmoid()),
    "HardSigmoid": _simple(
        lambda call: ops.HardSigmoid(
            call.attributes.number("alpha", 0.2), call.attributes.number("beta", 0.5)
        )
    ),
    "HardSwish": _simple(lambda call: ops.HardSwish()),
    "Tanh": _simple(lambda call: ops.Tanh()),
    "Elu": _simple(lambda call: ops.ELU(call.attributes.number("alpha", 1.0))),
    "Gelu": _simple(_gelu),
    "Swish": _swish,
    "Selu": _selu,
    "PRelu": _prelu,
    "Clip": _clip,
    "Max": _limit,
    "Min": _limit,
    "Neg": _negate,
    "Erf": _step("erf"),
    "Sqrt": _step("sqrt"),
    "Softplus": _step("softplus"),
    "Reciprocal": _reciprocal,
    "Pow": _power,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Sum": _sum,
}
