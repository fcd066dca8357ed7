"""What an ONNX name can stand for while a model is converted.

    Known      an array that is known now: weights, and shapes, which may depend on the batch size
    Feature    a tensor that depends on the image: a layer of ours and the layout of its values
    Merged     a tensor whose images lie in one row, batch and all: on its way to another shape
    Nothing    an optional input that is not there, or the output of a node that can't be converted

Layers are made once for the same operator on the same inputs, so patterns can be matched by
identity, and what nothing reads in the end is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy.typing as npt

from convserve.convert.layout import Layout
from convserve.errors import ConversionError, ShapeError
from convserve.graph.layers import Operator, Shape

__all__ = [
    "Array",
    "Feature",
    "Known",
    "Layer",
    "Layers",
    "Merged",
    "Origin",
    "Pending",
    "Unsupported",
]

Array: TypeAlias = npt.NDArray[Any]


class Unsupported(Exception):
    """A node that has no equivalent here; says what would be needed."""


class Origin(NamedTuple):
    """The ONNX node that a layer comes from."""

    name: str
    op_type: str
    output: str

    def __str__(self) -> str:
        if self.name:
            return f"node {self.name!r:.200} ({self.op_type!s:.100})"
        return f"the {self.op_type!s:.100} node that makes {self.output!r:.200}"


@dataclass(frozen=True)
class Known:
    """An array, or two that it would be with two batch sizes (`Batch.sizes`)."""

    variants: tuple[Array, ...]

    @property
    def array(self) -> Array:
        if len(self.variants) > 1:
            raise Unsupported("its constant depends on the batch size")
        return self.variants[0]


@dataclass(frozen=True)
class Pending(Operator):
    """A step that we have only as a part of a pattern: the Erf inside a GELU, say.

    one of mean (over the channels), centred (x - mean), square, cube, sqrt, erf, softplus,
    reciprocal_sqrt; and of LRN padded (before and after the channels), local_mean (of `size`
    channels), local_power.
    """

    op: ClassVar[str] = "pending"

    kind: str
    before: int = 0
    after: int = 0
    size: int = 0
    exponent: float = 1.0

    def infer(self, input_shapes: list[Shape]) -> Shape:  # type: ignore[override]
        channels, *rest = input_shapes[0]
        if self.kind == "mean":
            return 1, *rest
        if self.kind == "padded":
            return channels + self.before + self.after, *rest
        return (channels - self.size + 1, *rest) if self.kind == "local_mean" else (channels, *rest)


@dataclass(eq=False)
class Layer:
    """A layer to be: compared by identity. `op` is None for an input."""

    op: Operator | None
    inputs: tuple[Layer, ...]
    shape: Shape
    params: dict[str, Array]
    origin: Origin | None = None

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def pixels(self) -> int:
        return prod(self.shape[1:])

    def is_a(self, kind: type[Operator] | str) -> bool:
        if isinstance(kind, str):
            return isinstance(self.op, Pending) and self.op.kind == kind
        return isinstance(self.op, kind)


@dataclass(frozen=True, eq=False)
class Feature:
    """A tensor [N, ...]: a layer's values under a layout."""

    layer: Layer
    layout: Layout

    @classmethod
    def of(cls, layer: Layer) -> Feature:
        return cls(layer, Layout.natural(layer.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def on(self, layer: Layer) -> Feature:
        """Another layer's values of the same shape, under this layout."""
        assert layer.shape == self.layer.shape
        return Feature(layer, self.layout)


@dataclass(frozen=True, eq=False)
class Merged:
    """A feature reshaped to [N · F]."""

    feature: Feature


class Layers:
    """Makes layers; `origin` is the node that is being converted."""

    def __init__(self, inputs: Iterable[Shape]) -> None:
        self.inputs = [Layer(None, (), shape, {}) for shape in inputs]
        self.origin: Origin | None = None
        self._made: dict[tuple[Operator, tuple[int, ...]], Layer] = {}

    def add(self, op: Operator, *inputs: Layer, params: Mapping[str, Array] | None = None) -> Layer:
        """The layer of this operator; its shape and those of its parameters are checked."""
        key = op, tuple(id(layer) for layer in inputs)
        if not params and key in self._made:
            return self._made[key]
        shapes = [layer.shape for layer in inputs]
        shape = op.infer(shapes)
        if min(shape) < 1:
            raise ShapeError(f"its output is empty: {shape}")
        given = {name: value for name, value in (params or {}).items() if value is not None}
        for name, spec in op.parameters(shapes).items():
            if name not in given or given[name].shape != spec.shape:
                found = given[name].shape if name in given else "nothing"
                raise ConversionError(f"its {name} must have the shape {spec.shape}, got {found}")
        layer = Layer(op, inputs, shape, given, self.origin)
        if not params:
            self._made[key] = layer
        return layer
