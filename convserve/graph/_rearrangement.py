"""Layers that only move values: to other places, together, or away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from convserve.errors import ShapeError
from convserve.graph._operator import Operator, Shape, finite, image
from convserve.kernels._arguments import LIMIT, PaddingLike, integer, padding_sides

__all__ = ["ChannelShuffle", "Concat", "Crop", "Flatten", "Pad", "Slice"]


@dataclass(frozen=True)
class Flatten(Operator):
    """(C, H, W) to (C · H · W,), in row-major order."""

    op: ClassVar[str] = "flatten"
    prefix: ClassVar[str] = "flatten"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return (prod(input_shapes[0]),)


@dataclass(frozen=True)
class Concat(Operator):
    """Two or more images of equal height and width, joined along the channels; or flat inputs."""

    op: ClassVar[str] = "concat"
    prefix: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        first = input_shapes[0]
        for shape in input_shapes:
            if len(shape) != len(first) or shape[1:] != first[1:]:
                raise ShapeError(
                    f"concat: the inputs must have equal height and width, or all be flat, "
                    f"got {first} and {shape}"
                )
        return sum(shape[0] for shape in input_shapes), *first[1:]


@dataclass(frozen=True)
class Slice(Operator):
    """The channels (or features) start to stop - 1."""

    op: ClassVar[str] = "slice"
    prefix: ClassVar[str] = "slice"

    start: int
    stop: int

    def __post_init__(self) -> None:
        start, stop = integer(self.start, "start"), integer(self.stop, "stop", 1)
        if start >= stop:
            raise ShapeError(f"start must be below stop, got start {start}, stop {stop}")
        self._set(start=start, stop=stop)

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        channels, *rest = input_shapes[0]
        if self.stop > channels:
            raise ShapeError(f"slice: stop must be at most {channels}, got {self.stop}")
        return self.stop - self.start, *rest


@dataclass(frozen=True)
class ChannelShuffle(Operator):
    """Channels as [groups, C / groups], transposed: each group gets some of every group's."""

    op: ClassVar[str] = "channel_shuffle"
    prefix: ClassVar[str] = "shuffle"

    groups: int

    def __post_init__(self) -> None:
        self._set(groups=integer(self.groups, "groups", 1))

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        channels, height, width = image(input_shapes[0], self.op)
        if channels % self.groups:
            raise ShapeError(
                f"{self.op}: groups must divide the input's channels, "
                f"got groups {self.groups}, channels {channels}"
            )
        return channels, height, width


@dataclass(frozen=True)
class Pad(Operator):
    """Rows and columns of one value around the image: ((top, bottom), (left, right))."""

    op: ClassVar[str] = "pad"
    prefix: ClassVar[str] = "pad"

    padding: PaddingLike
    value: float = 0.0

    def __post_init__(self) -> None:
        self._set(padding=padding_sides(self.padding), value=finite(self.value, "value"))

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        channels, height, width = image(input_shapes[0], self.op)
        sides = padding_sides(self.padding)
        padded = height + sum(sides[0]), width + sum(sides[1])
        if max(padded) > LIMIT:
            raise ShapeError(f"pad: the padded size {padded} is over the limit {LIMIT}")
        return channels, *padded


@dataclass(frozen=True)
class Crop(Operator):
    """Rows and columns cut off the image: ((top, bottom), (left, right))."""

    op: ClassVar[str] = "crop"
    prefix: ClassVar[str] = "crop"

    padding: PaddingLike

    def __post_init__(self) -> None:
        self._set(padding=padding_sides(self.padding))

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        channels, height, width = image(input_shapes[0], self.op)
        sides = padding_sides(self.padding)
        left = height - sum(sides[0]), width - sum(sides[1])
        if min(left) < 1:
            raise ShapeError(
                f"crop: padding {sides} leaves nothing of height {height} and width {width}"
            )
        return channels, *left
