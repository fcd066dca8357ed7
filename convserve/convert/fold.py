"""Nodes whose inputs are all known, evaluated in NumPy: weights' and shapes' arithmetic.

    fold("Concat", [a, b], attributes, opset, budget) -> [array]

Sizes are checked before anything is allocated, and all results together have a bound, so a few
bytes of a hostile file can't ask for gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any, TypeAlias

import numpy as np

from convserve.convert.attributes import Attributes
from convserve.convert.tensors import dtype_of, to_array
from convserve.convert.values import Array, Unsupported
from convserve.errors import ConversionError

__all__ = ["Budget", "can_fold", "fold", "reshaped", "slices"]

Inputs: TypeAlias = "Sequence[Array | None]"
_Fold: TypeAlias = "Callable[[Inputs, Attributes, int], Array | list[Array]]"
MAX_FOLDED = 1 << 30  # elements made by folding, in all
MAX_MADE = 1 << 26  # elements of one array that is made from a few numbers


class Budget:
    """What folding may still make, in elements."""

    def __init__(self) -> None:
        self.left = MAX_FOLDED

    def take(self, elements: int) -> None:
        self.left -= elements
        if self.left < 0:
            raise ConversionError("its constant parts are too large to compute")


def can_fold(op_type: str) -> bool:
    return op_type in _FOLDS


def fold(
    op_type: str, inputs: Inputs, attributes: Attributes, opset: int, budget: Budget
) -> list[Array]:
    """The outputs of the node; ConversionError or ValueError where its inputs do not fit."""
    arrays = [value for value in inputs if value is not None]
    if op_type in _ELEMENTWISE:
        budget.take(_broadcast_size(arrays))
    elif op_type == "Concat":
        budget.take(sum(array.size for array in arrays))
    with np.errstate(all="ignore"):
        made = _FOLDS[op_type](inputs, attributes, opset)
    outputs = made if isinstance(made, list) else [made]
    budget.take(sum(output.size for output in outputs if output.base is None))
    return [np.asarray(output) for output in outputs]


def _broadcast_size(arrays: Sequence[Array]) -> int:
    size = prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if size > max(MAX_MADE, *(array.size for array in arrays)):
        raise ConversionError(f"its result would have {size} elements")
    return size


def _made(shape: Sequence[int]) -> tuple[int, ...]:
    if any(size < 0 for size in shape) or prod(shape) > MAX_MADE:
        raise ConversionError(f"it makes a constant of shape {tuple(shape)!s:.80}")
    return tuple(shape)


def _given(inputs: Inputs, place: int) -> Array:
    value = inputs[place] if place < len(inputs) else None
    if value is None:
        raise ConversionError(f"its input {place} is missing")
    return value


def _optional(inputs: Inputs, place: int) -> Array | None:
    return inputs[place] if place < len(inputs) else None


def integers(value: Array) -> list[int]:
    if value.ndim > 1 or not np.issubdtype(value.dtype, np.integer):
        raise ConversionError(f"it needs a list of integers, got {value.dtype} {value.shape}")
    return [int(v) for v in value.reshape(-1)]


def axes_of(inputs: Inputs, attributes: Attributes, place: int = 1) -> list[int] | None:
    """The axes from an input (newer opsets) or an attribute (older)."""
    value = _optional(inputs, place)
    if value is not None:
        return integers(value)
    return attributes.integers("axes") if "axes" in attributes else None


def _elementwise(function: Callable[..., Any]) -> _Fold:
    def run(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
        return np.asarray(function(*(_given(inputs, i) for i in range(len(inputs)))))

    return run


def _divide(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    if not b.all():
        raise ConversionError("it divides by zero")
    quotient = np.abs(a) // np.abs(b)  # integers are cut towards zero
    return np.asarray(np.sign(a) * np.sign(b) * quotient, a.dtype)


def _power(a: Array, b: Array) -> Array:
    return np.power(a, b).astype(a.dtype)


def _modulo(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    a, b = _given(inputs, 0), _given(inputs, 1)
    if np.issubdtype(a.dtype, np.integer) and not b.all():
        raise ConversionError("it divides by zero")
    return np.fmod(a, b) if attributes.integer("fmod", 0) else np.mod(a, b)


def reshaped(shape: Sequence[int], target: Sequence[int], allow_zero: bool) -> tuple[int, ...]:
    """The target with its 0 (as it was) and -1 (what is left) worked out."""
    target = list(target)
    for place, size in enumerate(target):
        if size == 0 and not allow_zero:
            if place >= len(shape):
                raise ConversionError(f"it can't reshape {tuple(shape)} to {target!s:.80}")
            target[place] = shape[place]
    if target.count(-1) > 1 or any(size < -1 for size in target):
        raise ConversionError(f"it can't reshape to {target!s:.80}")
    if -1 in target:
        rest = -prod(target)
        if rest == 0 or prod(shape) % rest:
            raise ConversionError(f"it can't reshape {tuple(shape)} to {target!s:.80}")
        target[target.index(-1)] = prod(shape) // rest
    if prod(target) != prod(shape):
        raise ConversionError(f"it can't reshape {tuple(shape)} to {target!s:.80}")
    return tuple(target)


def _reshape(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x = _given(inputs, 0)
    zero = bool(attributes.integer("allowzero", 0))
    return x.reshape(reshaped(x.shape, integers(_given(inputs, 1)), zero))


def _squeeze(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x, axes = _given(inputs, 0), axes_of(inputs, attributes)
    return np.squeeze(x, None if axes is None else tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    axes = axes_of(inputs, attributes)
    if axes is None:
        raise ConversionError("it has no axes")
    return np.expand_dims(_given(inputs, 0), tuple(axes))


def _gather(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x, index = _given(inputs, 0), _given(inputs, 1)
    if not np.issubdtype(index.dtype, np.integer):
        raise ConversionError("its indices must be integers")
    axis = attributes.integer("axis", 0)
    if prod(x.shape) and index.size > MAX_MADE // max(1, x.size // x.shape[axis]):
        raise ConversionError("its result would be too large")
    return np.take(x, index, axis)  # refuses an index out of bounds


def slices(
    inputs: Inputs, attributes: Attributes, opset: int, rank: int
) -> list[tuple[int, int, int, int]]:
    """(axis, start, stop, step) for each sliced axis, as the file gives them."""
    if opset < 10:
        starts, ends = attributes.integers("starts"), attributes.integers("ends")
        axes, steps = attributes.integers("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = integers(_given(inputs, 1)), integers(_given(inputs, 2))
        given, stepped = _optional(inputs, 3), _optional(inputs, 4)
        axes = list(range(len(starts))) if given is None else integers(given)
        steps = [1] * len(starts) if stepped is None else integers(stepped)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ConversionError("its starts, ends, axes and steps do not fit together")
    axes = [axis + rank if axis < 0 else axis for axis in axes]
    if any(not 0 <= axis < rank for axis in axes) or len(set(axes)) != len(axes):
        raise ConversionError(f"its axes {axes} do not fit {rank} axes")
    return list(zip(axes, starts, ends, steps, strict=True))


def bounds(start: int, stop: int, step: int, size: int) -> range:
    """What a slice with ONNX's rules selects of an axis."""
    if step < 0 and stop < -size:
        return range(*slice(start, None, step).indices(size))
    return range(*slice(start, stop, step).indices(size))


def _slice(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x = _given(inputs, 0)
    for axis, start, stop, step in slices(inputs, attributes, opset, x.ndim):
        chosen = bounds(start, stop, step, x.shape[axis])
        x = np.take(x, np.arange(chosen.start, chosen.stop, chosen.step), axis)
    return x


def _concat(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    arrays = [_given(inputs, place) for place in range(len(inputs))]
    return np.concatenate(arrays, attributes.integer("axis"))


def _split(inputs: Inputs, attributes: Attributes, opset: int) -> list[Array]:
    x, axis = _given(inputs, 0), attributes.integer("axis", 0)
    sizes = _optional(inputs, 1)
    parts = integers(sizes) if sizes is not None else attributes.integers("split", [])
    if not parts:
        parts = even_parts(x.shape[axis], attributes.integer("num_outputs", 2))
    if sum(parts) != x.shape[axis] or min(parts) < 0:
        raise ConversionError(f"its parts {parts} do not fit {x.shape[axis]}")
    return list(np.split(x, np.cumsum(parts)[:-1], axis))


def even_parts(size: int, count: int) -> list[int]:
    """Equal parts, the last one smaller where they do not divide."""
    if not 1 <= count <= size:
        raise ConversionError(f"it can't split {size} into {count}")
    part = -(-size // count)
    return [min(part, size - start) for start in range(0, size, part)]


def _cast(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    attributes.ignore("saturate", "round_mode")
    return _given(inputs, 0).astype(dtype_of(attributes.integer("to")))


def _constant(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    if "value" in attributes:
        return to_array(attributes.tensor("value"))
    for name, read, dtype in (
        ("value_float", attributes.number, np.float32),
        ("value_floats", attributes.numbers, np.float32),
        ("value_int", attributes.integer, np.int64),
        ("value_ints", attributes.integers, np.int64),
    ):
        if name in attributes:
            return np.asarray(read(name), dtype)
    raise Unsupported("it needs constants that are no numbers")


def _constant_of_shape(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    value = to_array(attributes.tensor("value")) if "value" in attributes else np.float32(0)
    return np.full(_made(integers(_given(inputs, 0))), np.asarray(value).reshape(()))


def _range(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    start, limit, step = (_given(inputs, place).reshape(()) for place in range(3))
    if not step or not np.isfinite([start, limit, step]).all():
        raise ConversionError("its limits make no range")
    _made([max(0, int((float(limit) - float(start)) / float(step)) + 1)])
    numbers: Any = (start.item(), limit.item(), step.item())
    return np.asarray(np.arange(*numbers, dtype=start.dtype))


def _expand(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x = _given(inputs, 0)
    shape = np.broadcast_shapes(x.shape, _made(integers(_given(inputs, 1))))
    return np.array(np.broadcast_to(x, _made(shape)))


def _tile(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x, repeats = _given(inputs, 0), integers(_given(inputs, 1))
    _made([*repeats, x.size])
    return np.asarray(np.tile(x, repeats))


def _transpose(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x = _given(inputs, 0)
    return np.transpose(x, attributes.integers("perm", list(range(x.ndim))[::-1]))


def _flatten(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    x, axis = _given(inputs, 0), attributes.integer("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise ConversionError(f"its axis {axis} does not fit {x.ndim} axes")
    return x.reshape(prod(x.shape[:axis]), -1)


def _reduce(function: Callable[..., Any]) -> _Fold:
    def run(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
        x, axes = _given(inputs, 0), axes_of(inputs, attributes)
        keep = bool(attributes.integer("keepdims", 1))
        empty = attributes.integer("noop_with_empty_axes", 0)
        if not axes and empty:
            return x
        return np.asarray(function(x, axis=tuple(axes) if axes else None, keepdims=keep), x.dtype)

    return run


def _where(a: Array, b: Array, c: Array) -> Array:
    return np.where(a.astype(bool), b, c)


def _cast_like(inputs: Inputs, attributes: Attributes, opset: int) -> Array:
    attributes.ignore("saturate", "round_mode")
    return _given(inputs, 0).astype(_given(inputs, 1).dtype)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": _power,
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or,
    "Not": np.logical_not, "Where": _where, "Neg": np.negative, "Abs": np.abs,
    "Floor": np.floor, "Ceil": np.ceil, "Round": np.rint, "Sqrt": np.sqrt, "Exp": np.exp,
    "Log": np.log, "Sign": np.sign, "Reciprocal": np.reciprocal, "Tanh": np.tanh,
    "Min": lambda *a: reduce(np.minimum, a), "Max": lambda *a: reduce(np.maximum, a),
    "Sum": lambda *a: reduce(np.add, a),
}  # fmt: skip
_ELEMENTWISE: dict[str, _Fold] = {name: _elementwise(f) for name, f in _FUNCTIONS.items()}
_FOLDS: dict[str, _Fold] = {
    **_ELEMENTWISE,
    "Mod": _modulo, "Reshape": _reshape, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Gather": _gather, "Slice": _slice, "Concat": _concat, "Split": _split, "Cast": _cast,
    "CastLike": _cast_like, "Constant": _constant, "ConstantOfShape": _constant_of_shape,
    "Range": _range, "Expand": _expand, "Tile": _tile, "Transpose": _transpose,
    "Flatten": _flatten, "Identity": lambda inputs, attributes, opset: _given(inputs, 0),
    "Shape": lambda inputs, attributes, opset: shape_part(_given(inputs, 0).shape, attributes),
    "Size": lambda inputs, attributes, opset: np.asarray(_given(inputs, 0).size, np.int64),
    "ReduceSum": _reduce(np.sum), "ReduceProd": _reduce(np.prod), "ReduceMean": _reduce(np.mean),
    "ReduceMax": _reduce(np.max), "ReduceMin": _reduce(np.min),
}  # fmt: skip


def shape_part(shape: Sequence[int], attributes: Attributes) -> Array:
    """What a Shape node gives: all of it, or from start to end."""
    rank = len(shape)
    start, end = attributes.integer("start", 0), attributes.integer("end", rank)
    return np.asarray(list(shape)[slice(*slice(start, end).indices(rank))], np.int64)
