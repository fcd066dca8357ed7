"""Functions of one value, and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from convserve.errors import ShapeError
from convserve.graph._operator import Operator, ParameterSpec, Shape, choice, finite

__all__ = [
    "ELU",
    "GELU",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "LeakyReLU",
    "LogSoftmax",
    "PReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]


@dataclass(frozen=True)
class ReLU(Operator):
    """max(x, 0)."""

    op: ClassVar[str] = "relu"
    prefix: ClassVar[str] = "relu"


@dataclass(frozen=True)
class LeakyReLU(Operator):
    """x where x > 0, else slope · x."""

    op: ClassVar[str] = "leaky_relu"
    prefix: ClassVar[str] = "leaky_relu"

    slope: float = 0.01

    def __post_init__(self) -> None:
        self._set(slope=finite(self.slope, "slope"))


@dataclass(frozen=True)
class PReLU(Operator):
    """x where x > 0, else slope · x, with a learned slope for each channel (or feature)."""

    op: ClassVar[str] = "prelu"
    prefix: ClassVar[str] = "prelu"

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        return {"slope": ParameterSpec((input_shapes[0][0],))}


@dataclass(frozen=True)
class Clip(Operator):
    """min(max(x, low), high); ReLU6 by default. None leaves a side open."""

    op: ClassVar[str] = "clip"
    prefix: ClassVar[str] = "clip"

    low: float | None = 0.0
    high: float | None = 6.0

    def __post_init__(self) -> None:
        low = None if self.low is None else finite(self.low, "low")
        high = None if self.high is None else finite(self.high, "high")
        if low is not None and high is not None and low > high:
            raise ShapeError(f"low must not be above high, got low {low}, high {high}")
        self._set(low=low, high=high)


@dataclass(frozen=True)
class Sigmoid(Operator):
    """1 / (1 + exp(-x))."""

    op: ClassVar[str] = "sigmoid"
    prefix: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class HardSigmoid(Operator):
    """min(max(alpha · x + beta, 0), 1)."""

    op: ClassVar[str] = "hard_sigmoid"
    prefix: ClassVar[str] = "hard_sigmoid"

    alpha: float = 1 / 6
    beta: float = 0.5

    def __post_init__(self) -> None:
        self._set(alpha=finite(self.alpha, "alpha"), beta=finite(self.beta, "beta"))


@dataclass(frozen=True)
class HardSwish(Operator):
    """x · min(max(x / 6 + 1/2, 0), 1)."""

    op: ClassVar[str] = "hard_swish"
    prefix: ClassVar[str] = "hard_swish"


@dataclass(frozen=True)
class SiLU(Operator):
    """x · sigmoid(x), also called swish."""

    op: ClassVar[str] = "silu"
    prefix: ClassVar[str] = "silu"


@dataclass(frozen=True)
class GELU(Operator):
    """x · Φ(x) with the normal distribution's Φ, "none" exact or "tanh" approximated."""

    op: ClassVar[str] = "gelu"
    prefix: ClassVar[str] = "gelu"

    approximate: str = "none"

    def __post_init__(self) -> None:
        self._set(approximate=choice(self.approximate, "approximate", ("none", "tanh")))


@dataclass(frozen=True)
class Tanh(Operator):
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""

    op: ClassVar[str] = "tanh"
    prefix: ClassVar[str] = "tanh"


@dataclass(frozen=True)
class ELU(Operator):
    """x where x > 0, else alpha · (exp(x) - 1)."""

    op: ClassVar[str] = "elu"
    prefix: ClassVar[str] = "elu"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        self._set(alpha=finite(self.alpha, "alpha"))


@dataclass(frozen=True)
class Softmax(Operator):
    """exp(x) / Σ exp(x) over the features, or channels of one pixel: scores to probabilities."""

    op: ClassVar[str] = "softmax"
    prefix: ClassVar[str] = "softmax"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return _scores(input_shapes[0], self.op)


@dataclass(frozen=True)
class LogSoftmax(Operator):
    """x - log Σ exp(x) over the features, or the channels of one pixel: the log of Softmax."""

    op: ClassVar[str] = "log_softmax"
    prefix: ClassVar[str] = "log_softmax"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return _scores(input_shapes[0], self.op)


def _scores(shape: Shape, op: str) -> Shape:
    """The shape, of which only the channels may be more than one."""
    if len(shape) != 1 and shape[1:] != (1, 1):
        raise ShapeError(
            f"{op} needs a flat input or an image of one pixel, got {shape}: add Flatten() before"
        )
    return shape
