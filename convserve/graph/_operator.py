"""What all operators have in common, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from convserve.errors import ShapeError

__all__ = [
    "Operator",
    "ParameterSpec",
    "Shape",
    "boolean",
    "choice",
    "finite",
    "flat",
    "image",
    "with_bias",
]

FLOAT32_MAX = float(np.finfo(np.float32).max)

Shape: TypeAlias = tuple[int, ...]


class ParameterSpec(NamedTuple):
    """One parameter array of a layer: its shape, and whether training changes it by gradient."""

    shape: Shape
    trainable: bool = True


@dataclass(frozen=True)
class Operator:
    """What every operator can tell about itself, given the shapes of its inputs."""

    op: ClassVar[str] = ""  # its name in files
    prefix: ClassVar[str] = ""  # of the default layer names: conv1, conv2, ...
    arity: ClassVar[int | None] = 1  # None: two or more

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        """The output's shape; ShapeError where the inputs do not fit."""
        return input_shapes[0]

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        """Its parameter arrays by name, in the order of a model file."""
        return {}

    def macs(self, input_shapes: Sequence[Shape]) -> int:
        """Multiply-accumulates an image, of convolution and affine layers; 0 for the others."""
        return 0

    def attributes(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {f.name: _to_json(getattr(self, f.name)) for f in fields(self)}

    def _set(self, **values: Any) -> None:
        """Stores normalised values in a frozen instance."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def with_bias(weight: ParameterSpec, bias: bool) -> dict[str, ParameterSpec]:
    specs = {"weight": weight}
    if bias:
        specs["bias"] = ParameterSpec(weight.shape[:1])
    return specs


def image(shape: Shape, op: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ShapeError(f"{op} needs an input of (channels, height, width), got {shape}")
    return shape[0], shape[1], shape[2]


def flat(shape: Shape, op: str) -> None:
    if len(shape) != 1:
        raise ShapeError(f"{op} needs a flat input, got {shape}: add Flatten() before")


def boolean(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r:.80}")
    return value


def finite(value: object, name: str) -> float:
    """The value as a float that is neither infinite nor NaN, also as the kernels' float32."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r:.80}")
    # A comparison, since an int may be beyond the floats.
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
        raise ShapeError(f"{name} must be a finite float32 value, got {float_text(value)}")
    return float(value)


def float_text(value: object) -> str:
    """For a message; an int may have more digits than Python prints."""
    big = isinstance(value, int) and value.bit_length() > 128
    return "an integer beyond all floats" if big else f"{value!r:.80}"


def choice(value: object, name: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r:.80}")
    if value not in allowed:
        choices = ", ".join(f'"{choice}"' for choice in allowed)
        raise ShapeError(f"{name} must be one of {choices}, got {value!r:.80}")
    return value


def _to_json(value: Any) -> Any:
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value
