"""One node to convert, as the mappings of `nodes_*` see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from convserve.convert.attributes import Attributes
from convserve.convert.values import Array, Feature, Known, Layer, Layers, Merged, Unsupported
from convserve.convert.views import image
from convserve.errors import ConversionError
from convserve.graph.layers import Operator

__all__ = ["Call", "Mapping", "Nodes", "Value"]

Value: TypeAlias = "Known | Feature | Merged"


@dataclass(frozen=True)
class Call:
    """`batch`: the sizes that the batch is taken to have while shapes are worked out; `more_read`:
    the outputs after the first that anything reads."""

    build: Layers
    op_type: str
    inputs: Sequence[Value | None]
    outputs: int
    more_read: Sequence[str]
    attributes: Attributes
    opset: int
    batch: tuple[int, ...]

    def value(self, place: int) -> Value | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def feature(self, place: int = 0) -> Feature:
        value = self.value(place)
        if value is None:
            raise ConversionError(f"its input {place} is missing")
        if isinstance(value, Merged):
            raise Unsupported("it works across the images of a batch")
        if not isinstance(value, Feature):
            raise Unsupported(f"its input {place} must depend on the image, it is a constant")
        return value

    def image(self, place: int = 0) -> Layer:
        return image(self.build, self.feature(place))

    def constant(self, place: int, rank: int | None = None) -> npt.NDArray[np.float32]:
        """Weights: a float32 array that is known and does not depend on the batch size."""
        value = self.optional(place, rank)
        if value is None:
            raise ConversionError(f"its input {place} is missing")
        return value

    def optional(self, place: int, rank: int | None = None) -> npt.NDArray[np.float32] | None:
        value = self.value(place)
        if value is None:
            return None
        if not isinstance(value, Known):
            raise Unsupported(f"its input {place} must be constant, it depends on the image")
        array = value.array
        if array.dtype != np.float32:
            raise Unsupported(f"its input {place} must be float32, it is {array.dtype}")
        if rank is not None and array.ndim != rank:
            raise ConversionError(
                f"its input {place} must have {rank} axes, it has the shape {array.shape}"
            )
        return array

    def number(self, place: int) -> float | None:
        """A single constant number, if it is there."""
        array = self.optional(place)
        if array is not None and array.size != 1:
            raise Unsupported(f"its input {place} must be one number, got shape {array.shape}")
        return None if array is None else float(array.reshape(()))

    def known(self, place: int) -> tuple[Array, ...] | None:
        """A shape or the like, one array for each of `batch`."""
        value = self.value(place)
        if value is None:
            return None
        if not isinstance(value, Known):
            raise Unsupported(f"its input {place} must be known, it depends on the image")
        count = len(self.batch)
        return value.variants * count if len(value.variants) == 1 else value.variants

    def integers(self, place: int) -> list[int] | None:
        """A constant list of integers, if it is there."""
        variants = self.known(place)
        if variants is None:
            return None
        first = variants[0]
        if any(not np.array_equal(first, other) for other in variants[1:]):
            raise Unsupported(f"its input {place} depends on the batch size")
        if not np.issubdtype(first.dtype, np.integer):
            raise ConversionError(f"its input {place} must be integers, got {first.dtype}")
        return [int(value) for value in first.reshape(-1)]

    def axis(self, axis: int, rank: int | None = None) -> int:
        """An ONNX axis as one of the feature's without the batch; it may not be the batch."""
        rank = len(self.feature().shape) + 1 if rank is None else rank
        if not -rank <= axis < rank:
            raise ConversionError(f"its axis {axis} does not fit {rank} axes")
        axis %= rank
        if axis == 0:
            raise Unsupported("it works across the images of a batch")
        return axis - 1

    def one_output(self) -> None:
        if self.more_read:
            raise Unsupported(
                f"its output {self.more_read[0]!r:.200} is used, the first alone can be"
            )

    def unary(self, op: Operator, params: Mapping[str, Array] | None = None) -> Feature:
        """A layer on the values as they lie, whatever their layout."""
        x = self.feature()
        return x.on(self.build.add(op, x.layer, params=params))


Nodes: TypeAlias = "Mapping[str, Callable[[Call], Feature | Merged | list[Feature]]]"
