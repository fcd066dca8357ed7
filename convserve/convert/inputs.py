"""The inputs of an ONNX model: their sizes, the batch, and which axis the channels are.

[N, 3, 224, 224]    an image                        (3, 224, 224) of ours
[N, 224, 224, 3]    one with its channels last      (3, 224, 224)
[N, 10]             a row beside an image           (10,)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from onnx import ModelProto, TensorProto, ValueInfoProto

from convserve.convert.layout import Layout
from convserve.convert.tensors import type_name
from convserve.convert.values import Feature, Layer
from convserve.errors import ConversionError
from convserve.graph.graph import MAX_ELEMENTS
from convserve.graph.layers import Shape

__all__ = ["LAYOUTS", "Input", "InputShape", "read_inputs"]

# (channels, height, width) of the only input, or by the inputs' names.
InputShape: TypeAlias = "Sequence[int] | Mapping[str, Sequence[int]]"
LAYOUTS = ("nchw", "nhwc")
MAX_SIDE = 1 << 20
TRIAL_BATCHES = (5, 7)  # a size that differs with them is the batch's
_CHANNELS = (1, 3, 4)  # of pictures


@dataclass(frozen=True)
class Input:
    """`last`: whether its channels are the last axis; `unsure`: it may be the other way."""

    name: str
    shape: Shape  # as ONNX has it, without the batch
    last: bool = False
    unsure: bool = False

    @property
    def our_shape(self) -> Shape:
        h, w, c = self.shape if self.last else (0, 0, 0)
        return (c, h, w) if self.last else self.shape

    def feature(self, layer: Layer) -> Feature:
        """The tensor as ONNX sees it, over our layer."""
        layout = Layout.natural(layer.shape)
        return Feature(layer, layout.transpose((1, 2, 0)) if self.last else layout)


def read_inputs(
    model: ModelProto, wanted: InputShape | None, layout: str | None
) -> tuple[list[Input], tuple[int, ...]]:
    """The inputs, images before rows; and the batch sizes to work shapes out with.

    Errors: ConversionError for what no image classifier has.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    if not values:
        raise ConversionError("the model has no inputs")
    if len({value.name for value in values}) < len(values):
        raise ConversionError("two of the model's inputs have the same name")
    if layout is not None and layout not in LAYOUTS:
        raise ConversionError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r:.80}")
    asked = _by_name(values, wanted)
    inputs, batches = [], set()
    for value in values:
        found, batch = _read(value, asked.get(value.name), layout, alone=len(values) == 1)
        inputs.append(found)
        batches.add(batch)
    if len(batches) > 1:
        raise ConversionError(f"its inputs have different batch sizes: {_sizes(batches)}")
    if all(len(given.shape) != 3 for given in inputs):
        raise ConversionError("none of its inputs are images with 4 axes")
    batch = batches.pop()
    return sorted(inputs, key=lambda i: len(i.shape) != 3), (batch,) if batch else TRIAL_BATCHES


def _by_name(
    values: Sequence[ValueInfoProto], wanted: InputShape | None
) -> dict[str, tuple[int, ...]]:
    names = [value.name for value in values]
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        if len(names) > 1:
            raise ConversionError(
                f"the model has the inputs {names}: give input_shape for each by its name"
            )
        return {names[0]: tuple(wanted)}
    for name in wanted:
        if name not in names:
            raise ConversionError(
                f"input_shape names {name!r:.200}, the model has the inputs {names}"
            )
    return {name: tuple(shape) for name, shape in wanted.items()}


def _read(
    value: ValueInfoProto, wanted: tuple[int, ...] | None, layout: str | None, *, alone: bool
) -> tuple[Input, int]:
    """The input, and its batch size (0: any)."""
    what = f"the input {value.name!r:.200}"
    if not value.type.HasField("tensor_type"):
        raise ConversionError(f"{what} is no tensor")
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ConversionError(f"{what} must be float32, it is {type_name(tensor.elem_type)}")
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    ranks = (4,) if alone else (2, 4)
    if tensor.HasField("shape") and len(dims) not in ranks:
        kinds = "images with 4 axes" if alone else "images with 4 axes or rows with 2"
        raise ConversionError(f"{what} must be {kinds}, it has {len(dims)}")
    dims = dims or [0] * (4 if wanted is None else len(wanted) + 1)
    if any(size < -1 or size > MAX_SIDE for size in dims):
        raise ConversionError(f"{what} has an impossible shape {dims}")
    last = None if layout is None else layout == "nhwc"
    if wanted is not None:
        dims[1:] = _fitted(what, dims[1:], wanted, last)
    if min(dims[1:]) <= 0:
        raise ConversionError(
            f"{what} leaves its height and width open: give input_shape (--input-shape 3,224,224)"
            if len(dims) == 4
            else f"{what} leaves its size open: give input_shape"
        )
    shape = tuple(dims[1:])
    if prod(shape) > MAX_ELEMENTS:
        raise ConversionError(f"{what} has an impossible shape {dims}")
    batch = max(dims[0], 0)
    if len(shape) == 1:
        return Input(value.name, shape), batch
    if last is not None:
        return Input(value.name, shape, last), batch
    if wanted is not None:
        return Input(value.name, shape, wanted != shape), batch
    a, b, c = shape
    picture = c in _CHANNELS and min(a, b) > max(_CHANNELS)
    return Input(value.name, shape, picture, picture), batch


def _fitted(
    what: str, declared: Sequence[int], wanted: tuple[int, ...], last: bool | None
) -> tuple[int, ...]:
    """The sizes in the order in which ONNX has them."""
    if len(wanted) != len(declared) or any(
        type(size) is not int or not 0 < size <= MAX_SIDE for size in wanted
    ):
        form = "(channels, height, width)" if len(declared) == 3 else "(features,)"
        raise ConversionError(f"{what}: input_shape must be {form}, got {wanted!r:.80}")
    turned = (*wanted[1:], wanted[0])
    orders = {None: [wanted, turned], False: [wanted], True: [turned]}[last]
    for order in orders:
        if all(size <= 0 or size == own for size, own in zip(declared, order, strict=True)):
            return order
    raise ConversionError(f"{what} has the sizes {list(declared)}, input_shape says {wanted}")


def _sizes(batches: Iterable[int]) -> str:
    return ", ".join(str(size) if size else "any" for size in sorted(batches))
