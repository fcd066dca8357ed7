"""Layers of two inputs, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from convserve.errors import ShapeError
from convserve.graph._operator import Operator, Shape

__all__ = ["Add", "Mul", "Sub"]


@dataclass(frozen=True)
class _Binary(Operator):
    """Equal shapes, or (C, 1, 1) with (C, H, W): one value a channel goes with all its pixels."""

    arity: ClassVar[int | None] = 2

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        first, second = input_shapes
        if first == second:
            return first
        for image, channels in ((first, second), (second, first)):
            if len(image) == 3 and channels == (image[0], 1, 1):
                return image
        raise ShapeError(
            f"{self.op}: the inputs must have equal shapes, or one of them (C, 1, 1) for the "
            f"other's (C, H, W), got {first} and {second}"
        )


@dataclass(frozen=True)
class Add(_Binary):
    """The sum of two inputs: the end of a residual block."""

    op: ClassVar[str] = "add"
    prefix: ClassVar[str] = "add"


@dataclass(frozen=True)
class Sub(_Binary):
    """The first input less the second."""

    op: ClassVar[str] = "sub"
    prefix: ClassVar[str] = "sub"


@dataclass(frozen=True)
class Mul(_Binary):
    """The product of two inputs: with (C, 1, 1), the end of a squeeze-and-excitation block."""

    op: ClassVar[str] = "mul"
    prefix: ClassVar[str] = "mul"
