"""Nodes that only move values: they change the layout, or take and join channels."""

from __future__ import annotations

from math import prod

import numpy as np

from convserve.convert.call import Call, Nodes
from convserve.convert.fold import axes_of, bounds, even_parts, reshaped, slices
from convserve.convert.layout import Atom, Layout, join
from convserve.convert.nodes_windows import crop
from convserve.convert.values import Feature, Known, Layer, Merged, Unsupported
from convserve.convert.views import axis_kind, in_order, order, plain
from convserve.errors import ConversionError
from convserve.graph import layers as ops

__all__ = ["NODES"]

MAX_RUNS = 16  # of neighbouring channels that a Gather may take


def _laid(x: Feature, shape: tuple[int, ...]) -> Feature:
    layout = x.layout.reshape(shape)
    if layout is None:
        raise Unsupported(f"it needs {('N', *x.shape)} reshaped to {('N', *shape)} in memory")
    return Feature(x.layer, layout)


def _reshape(call: Call) -> Feature | Merged:
    value, variants = call.value(0), call.known(1)
    x = value.feature if isinstance(value, Merged) else call.feature()
    if variants is None:
        raise ConversionError("its shape is missing")
    zero = bool(call.attributes.integer("allowzero", 0))
    count = prod(x.shape)
    shapes: set[tuple[int, ...] | None] = set()
    for batch, target in zip(call.batch, variants, strict=True):
        before = (batch * count,) if isinstance(value, Merged) else (batch, *x.shape)
        shape = reshaped(before, [int(v) for v in target.reshape(-1)], zero)
        if shape == (batch * count,) != (batch,):
            shapes.add(None)
            continue
        if not shape or shape[0] != batch:
            raise Unsupported(
                f"it reshapes {('N', *x.shape)} to {target.tolist()!s:.80}, which mixes the batch"
            )
        shapes.add(shape[1:])
    if len(shapes) != 1:
        raise Unsupported("its shape depends on the batch size")
    (found,) = shapes
    return Merged(x) if found is None else _laid(x, found)


def _flatten(call: Call) -> Feature:
    x = call.feature()
    axis = call.attributes.integer("axis", 1)
    rank = len(x.shape) + 1
    if not -rank <= axis <= rank:
        raise ConversionError(f"its axis {axis} does not fit {rank} axes")
    axis = axis + rank if axis < 0 else axis
    if axis == 0 or prod(x.shape[: axis - 1]) != 1:
        raise Unsupported("it flattens images of the batch together")
    return _laid(x, (prod(x.shape),))


def _axes(call: Call, rank: int) -> list[int] | None:
    """Axes from an input or an attribute, counted within `rank`; none may be the batch."""
    axes = call.integers(1) if len(call.inputs) > 1 else axes_of([], call.attributes)
    return None if axes is None else [call.axis(axis, rank) for axis in axes]


def _squeeze(call: Call) -> Feature:
    x = call.feature()
    axes = _axes(call, len(x.shape) + 1)
    if axes is None:
        if 1 in call.batch:
            raise Unsupported("it takes the batch's axis away")
        axes = [place for place, size in enumerate(x.shape) if size == 1]
    if any(x.shape[axis] != 1 for axis in axes):
        raise ConversionError(f"it can't squeeze the axes {axes} of {('N', *x.shape)}")
    return _laid(x, tuple(s for place, s in enumerate(x.shape) if place not in axes))


def _unsqueeze(call: Call) -> Feature:
    x = call.feature()
    given = call.integers(1) if len(call.inputs) > 1 else axes_of([], call.attributes)
    if not given:
        raise ConversionError("it has no axes")
    rank = len(x.shape) + 1 + len(given)
    axes = {call.axis(axis, rank) for axis in given}
    if len(axes) != len(given) or rank > 16:
        raise ConversionError(f"its axes {given!s:.80} do not fit")
    sizes = iter(x.shape)
    return _laid(x, tuple(1 if place in axes else next(sizes) for place in range(rank - 1)))


def _transpose(call: Call) -> Feature:
    x = call.feature()
    rank = len(x.shape) + 1
    perm = call.attributes.integers("perm", list(range(rank))[::-1])
    if sorted(perm) != list(range(rank)):
        raise ConversionError(f"its perm {perm!s:.80} does not fit {rank} axes")
    if perm[0] != 0:
        raise Unsupported("it moves the batch's axis")
    return Feature(x.layer, x.layout.transpose([axis - 1 for axis in perm[1:]]))


def _part(call: Call, x: Feature, axis: int, start: int, stop: int) -> Feature:
    """The part from start to stop of an axis."""
    if not 0 <= start < stop <= x.shape[axis]:
        raise ConversionError(f"it takes {start} to {stop} of an axis of {x.shape[axis]}")
    if (start, stop) == (0, x.shape[axis]):
        return x
    if axis_kind(x, axis) not in ("channels", "some channels"):
        return crop(call, x, axis, start, stop)
    found = _channel_part(call, x, axis, start, stop)
    if found is None:
        reshaped_axes = plain(call.build, x)
        found = _channel_part(call, reshaped_axes, axis, start, stop)
    if found is None:
        raise Unsupported("it needs a part of the channels that lies apart in memory")
    return found


def _channel_part(call: Call, x: Feature, axis: int, start: int, stop: int) -> Feature | None:
    outer, *inner = x.layout.axes[axis]
    step = prod(atom.size for atom in inner)
    layer = x.layer
    if outer.size * outer.stride != layer.channels * layer.pixels or start % step or stop % step:
        return None
    start, stop = start // step, stop // step
    wide = outer.stride // layer.pixels
    part = call.build.add(ops.Slice(start * wide, stop * wide), layer)
    axes = list(x.layout.axes)
    axes[axis] = join([Atom(stop - start, outer.stride), *inner])
    return Feature(part, Layout(tuple(axes)))


def _slice(call: Call) -> Feature:
    x = call.feature()
    rank = len(x.shape) + 1
    inputs: list[object] = [None]
    for place in range(1, len(call.inputs)):
        if call.integers(place) is None:
            inputs.append(None)
        else:
            value = call.inputs[place]
            assert isinstance(value, Known)
            inputs.append(value.variants[0])
    for axis, start, stop, step in slices(inputs, call.attributes, call.opset, rank):  # type: ignore[arg-type]
        if axis == 0:
            if start == 0 and step == 1 and stop >= 2**31 - 1:
                continue
            raise Unsupported("it takes a part of the batch")
        x = _stepped(call, x, axis - 1, bounds(start, stop, step, x.shape[axis - 1]))
    return x


def _stepped(call: Call, x: Feature, axis: int, chosen: range) -> Feature:
    if not chosen:
        raise ConversionError("it takes nothing of an axis")
    if chosen.step == 1 or len(chosen) == 1:
        return _part(call, x, axis, chosen.start, chosen.start + len(chosen))
    places = order(x)
    if places is not None and len(places) == 3 and places[axis] > 0 and chosen.step > 0:
        # Every n-th row or column: a pooling window of one value.
        x = _part(call, x, axis, chosen.start, chosen[-1] + 1)
        step = (chosen.step, 1) if places[axis] == 1 else (1, chosen.step)
        layer = call.build.add(ops.MaxPool2d(1, step, 0, "floor"), x.layer)
        return Feature(layer, Layout.natural(layer.shape).transpose(places))
    return _picked(call, x, axis, list(chosen))


def _gather(call: Call) -> Feature:
    source = call.value(0)
    if isinstance(source, Merged):
        return _gather_merged(call, source.feature)
    x = call.feature()
    axis = call.axis(call.attributes.integer("axis", 0))
    value = call.value(1)
    index = call.integers(1)
    if index is None or not isinstance(value, Known):
        raise ConversionError("its indices are missing")
    size = x.shape[axis]
    if not index or any(not -size <= i < size for i in index):
        raise ConversionError(f"its indices {index!s:.80} do not fit an axis of {size}")
    rank = value.variants[0].ndim
    if rank > 1:
        raise Unsupported("it needs indices in more than one axis")
    x = _picked(call, x, axis, [i % size for i in index])
    return x if rank else _laid(x, x.shape[:axis] + x.shape[axis + 1 :])


def _gather_merged(call: Call, x: Feature) -> Feature:
    """Values of the whole batch in a row, picked by number: where that is each image's, in order.

    PyTorch's exporter writes strided views so.
    """
    variants, count = call.known(1), prod(x.shape)
    if variants is None or call.attributes.integer("axis", 0) not in (0, -1):
        raise ConversionError("its indices or axis do not fit")
    shapes = set()
    for batch, index in zip(call.batch, variants, strict=True):
        if index.shape[:1] != (batch,) or not np.array_equal(
            index.reshape(-1), np.arange(batch * count)
        ):
            raise Unsupported("it picks values across the images of a batch")
        shapes.add(index.shape[1:])
    return _laid(x, shapes.pop())


def _picked(call: Call, x: Feature, axis: int, chosen: list[int]) -> Feature:
    """Places of an axis in any order, as runs of neighbours that are joined again."""
    runs: list[list[int]] = []
    for place in chosen:
        if runs and runs[-1][1] == place:
            runs[-1][1] = place + 1
        else:
            runs.append([place, place + 1])
        if len(runs) > MAX_RUNS:
            raise Unsupported(f"it needs more than {MAX_RUNS} pieces of an axis")
    parts = [_part(call, x, axis, start, stop) for start, stop in runs]
    return parts[0] if len(parts) == 1 else _joined(call, parts, axis)


def _split(call: Call) -> list[Feature]:
    x = call.feature()
    axis = call.axis(call.attributes.integer("axis", 0))
    parts = call.integers(1) or call.attributes.integers("split", [])
    count = call.attributes.integer("num_outputs", call.outputs)
    if not parts:
        parts = even_parts(x.shape[axis], count)
    if sum(parts) != x.shape[axis] or min(parts) < 1:
        raise ConversionError(f"its parts {parts!s:.80} do not fit an axis of {x.shape[axis]}")
    found, start = [], 0
    for size in parts:
        found.append(_part(call, x, axis, start, start + size))
        start += size
    return found


def _concat(call: Call) -> Feature:
    features = [call.feature(place) for place in range(len(call.inputs))]
    return _joined(call, features, call.axis(call.attributes.integer("axis")))


def _joined(call: Call, features: list[Feature], axis: int) -> Feature:
    if len(features) == 1:
        return features[0]
    first = features[0].shape
    for x in features:
        if len(x.shape) != len(first) or any(
            a != b for place, (a, b) in enumerate(zip(x.shape, first, strict=True)) if place != axis
        ):
            raise ConversionError(f"it can't join {('N', *first)} and {('N', *x.shape)}")
    if len(first) == 1:
        layers = [in_order(call.build, x) for x in features]
        return Feature.of(call.build.add(ops.Concat(), *layers))
    places = {order(x) for x in features}
    if len(places) != 1 or None in places:
        features = [plain(call.build, x) for x in features]
        places = {order(x) for x in features}
    found = places.pop()
    if places or found is None:
        raise Unsupported("it needs its inputs' axes transposed in memory")
    if len(found) != 3 or found[axis] != 0:
        raise Unsupported("it needs images joined along the height or the width")
    layer: Layer = call.build.add(ops.Concat(), *(x.layer for x in features))
    return Feature(layer, Layout.natural(layer.shape).transpose(found))


NODES: Nodes = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Concat": _concat,
}
