"""Reading tensors as layers want them: as an image, as a row of features, by channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from convserve.convert.layout import Atom, Layout, join, offsets
from convserve.convert.values import Array, Feature, Layer, Layers, Unsupported
from convserve.graph import layers as ops

__all__ = ["axis_kind", "flat", "image", "in_order", "order", "per_channel", "plain", "pooled"]

# What one pixel's channels go through as a row of features does.
POINTWISE = (
    ops.ReLU, ops.LeakyReLU, ops.Clip, ops.Sigmoid, ops.HardSigmoid, ops.HardSwish, ops.SiLU,
    ops.GELU, ops.Tanh, ops.ELU, ops.Dropout, ops.ScaleShift, ops.PReLU, ops.BatchNorm, ops.Add,
    ops.Sub, ops.Mul, ops.Concat, ops.Slice, ops.LayerNorm, ops.Softmax, ops.LogSoftmax,
)  # fmt: skip


def image(build: Layers, x: Feature) -> Layer:
    """The layer whose value is the tensor [N, C, H, W] itself."""
    shape = x.shape
    if len(shape) != 3:
        raise Unsupported(f"it needs a tensor [N, C, H, W], got {len(shape) + 1} axes")
    layer = x.layer
    if x.layout == Layout.natural(shape):
        if layer.shape == shape:
            return layer
        if shape[1:] == (1, 1):
            return _as_pixel(build, layer)
        raise Unsupported(f"it needs an image of {layer.shape} reshaped to {shape}")
    groups = _shuffle_groups(x)
    if groups:
        return build.add(ops.ChannelShuffle(groups), layer)
    raise Unsupported("it needs its input's axes transposed in memory")


def flat(build: Layers, x: Feature) -> tuple[Layer, npt.NDArray[np.int64] | None]:
    """The layer whose value is the row [N, F], and the order of the row's values in it.

    None is the order as it lies. All axes but one must be of size 1.
    """
    if sum(size > 1 for size in x.shape) > 1:
        raise Unsupported(f"it needs a flat input, got one of shape {('N', *x.shape)}")
    layer = x.layer
    if len(layer.shape) == 3:
        layer = build.add(ops.Flatten(), layer)
    if x.layout.atoms == Layout.natural(layer.shape).atoms:
        return layer, None
    return layer, x.layout.places()


def in_order(build: Layers, x: Feature) -> Layer:
    """`flat`, where the order must be the one in memory."""
    layer, order = flat(build, x)
    if order is not None:
        raise Unsupported("it needs its input's axes transposed in memory")
    return layer


def plain(build: Layers, x: Feature) -> Feature:
    """The same tensor over a layer that lies as the tensor does, if that can be had."""
    try:
        return Feature.of(image(build, x) if len(x.shape) == 3 else in_order(build, x))
    except Unsupported:
        return x


def order(x: Feature) -> tuple[int, ...] | None:
    """For each axis of the tensor, which axis of the layer's value it is; None if they differ."""
    natural = Layout.natural(x.layer.shape).axes
    if len(natural) != len(x.layout.axes):
        return None
    left = list(range(len(natural)))
    found: list[int | None] = []
    for axis in x.layout.axes:
        place = next((p for p in left if axis and natural[p] == axis), None)
        if place is not None:
            left.remove(place)
        elif axis:
            return None
        found.append(place)
    if any(natural[place] for place in left):
        return None
    return tuple(left.pop(0) if place is None else place for place in found)


def axis_kind(x: Feature, axis: int) -> str:
    """What an axis runs over: "channels" (all, in order), "some channels", "pixels", "mixed"."""
    atoms, pixels = x.layout.axes[axis], x.layer.pixels
    if atoms == join([Atom(x.layer.channels, pixels)]):
        return "channels"
    if all(atom.stride % pixels == 0 for atom in atoms):
        return "some channels"
    if all((atom.size - 1) * atom.stride < pixels for atom in atoms):
        return "pixels"
    return "mixed"


def per_channel(x: Feature, constant: Array) -> Array:
    """The constant, broadcast to the tensor, as one value a channel of its layer: float64 [C]."""
    shape, rank = x.shape, len(x.shape)
    if constant.ndim > rank + 1 or (constant.ndim == rank + 1 and constant.shape[0] != 1):
        raise Unsupported(f"a constant of shape {constant.shape} would differ within the batch")
    lead: tuple[int, ...] = constant.shape[1:] if constant.ndim == rank + 1 else constant.shape
    values: Array = constant.reshape((1,) * (rank - len(lead)) + lead).astype(np.float64)
    for size, given in zip(shape, values.shape, strict=True):
        if given not in (1, size):
            raise Unsupported(f"a constant of shape {constant.shape} would enlarge {shape}")
    pixels = x.layer.pixels
    channel = np.zeros((1,) * rank, np.int64)
    for axis in range(rank):
        if values.shape[axis] == 1:
            continue
        if axis_kind(x, axis) not in ("channels", "some channels"):
            raise Unsupported(
                f"a constant of shape {constant.shape} that differs from pixel to pixel: it needs "
                "an operator with a parameter for each value"
            )
        steps = offsets(x.layout.axes[axis]) // pixels
        channel = channel + steps.reshape((-1,) + (1,) * (rank - axis - 1))
    if values.size == 1:
        return np.full(x.layer.channels, values.reshape(()), np.float64)
    # What the constant's axes leave out of a channel's number, the value does not depend on.
    rest = [
        atom
        for axis in range(rank)
        if values.shape[axis] == 1
        for atom in x.layout.axes[axis]
        if atom.stride % pixels == 0
    ]
    if any(
        atom.stride < pixels < atom.size * atom.stride for axis in x.layout.axes for atom in axis
    ):
        raise Unsupported("a constant that goes across channels and pixels")
    spread = offsets(tuple(rest)) // pixels
    out = np.empty(x.layer.channels, np.float64)
    out[channel.reshape(-1)[:, None] + spread] = values.reshape(-1)[:, None]
    return out


def pooled(x: Feature, layer: Layer, reduced: set[int], keep: bool) -> Feature:
    """The layout over a layer in which the pixels (or the channels) of x have become one.

    Of the tensor's axes, the reduced ones are left with size 1, or go.
    """
    scale = 1 if layer.pixels == x.layer.pixels else x.layer.pixels
    axes = []
    for place, axis in enumerate(x.layout.axes):
        if place not in reduced:
            axes.append(tuple(Atom(size, stride // scale) for size, stride in axis))
        elif keep:
            axes.append(())
    return Feature(layer, Layout(tuple(axes)))


def _shuffle_groups(x: Feature) -> int:
    """The groups of the channel shuffle that makes this tensor of its layer, or 0."""
    if len(x.layer.shape) != 3 or x.layer.shape != x.shape:
        return 0
    channels, *rest = x.layout.axes
    pixels = x.layer.pixels
    if tuple(rest) != Layout.natural(x.shape).axes[1:] or len(channels) != 2:
        return 0
    outer, inner = channels
    fits = outer.stride == pixels and inner.stride == outer.size * pixels
    return inner.size if fits else 0


def _as_pixel(build: Layers, layer: Layer) -> Layer:
    """The same features as an image (F, 1, 1): affine layers become 1×1 convolutions."""
    if len(layer.shape) == 3:
        if layer.shape[1:] != (1, 1):
            raise Unsupported(f"it needs an image of {layer.shape} reshaped to one pixel")
        return layer
    # From the layers that have such an image already, forward; a deep chain must not recurse.
    done: dict[int, Layer] = {}
    pending = [layer]
    while pending:
        current = pending[-1]
        if id(current) in done:
            pending.pop()
            continue
        if current.is_a(ops.Flatten):
            (source,) = current.inputs
            if source.shape[1:] != (1, 1):
                raise Unsupported(f"it needs a flattened image of {source.shape} as one pixel")
            done[id(current)] = source
            continue
        if current.is_a(ops.Affine) and current.inputs[0].is_a(ops.Flatten):
            done[id(current)] = _conv_of(build, current, current.inputs[0].inputs[0])
            continue
        missing = [i for i in current.inputs if len(i.shape) == 1 and id(i) not in done]
        if missing:
            pending.extend(missing)
            continue
        inputs = [done.get(id(source), source) for source in current.inputs]
        done[id(current)] = _pixel_layer(build, current, inputs)
    return done[id(layer)]


def _conv_of(build: Layers, affine: Layer, source: Layer) -> Layer:
    """An affine layer over a whole image as the convolution by filters of the image's size."""
    assert isinstance(affine.op, ops.Affine)
    size = source.shape[1], source.shape[2]
    conv = ops.Conv2d(affine.op.out_features, size, bias=affine.op.bias)
    weight = affine.params["weight"].reshape(-1, *source.shape)
    return build.add(conv, source, params={**affine.params, "weight": weight})


def _pixel_layer(build: Layers, layer: Layer, inputs: list[Layer]) -> Layer:
    if layer.is_a(ops.Affine):
        return _conv_of(build, layer, inputs[0])
    if isinstance(layer.op, POINTWISE):
        return build.add(layer.op, *inputs, params=layer.params)
    raise Unsupported(f"it needs as an image again what {layer.origin} makes, which is flat")
