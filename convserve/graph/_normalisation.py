"""Layers that scale and shift: by constants, by running statistics, or by the image's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from convserve.errors import ShapeError
from convserve.graph._operator import Operator, ParameterSpec, Shape, finite, image
from convserve.kernels._arguments import integer, positive

__all__ = ["LRN", "BatchNorm", "Dropout", "LayerNorm", "ScaleShift"]


@dataclass(frozen=True)
class BatchNorm(Operator):
    """(x - mean) / sqrt(var + eps) · weight + bias, per channel (or per feature of a flat input).

    Training uses the batch's mean and variance, and moves the running ones by `momentum`;
    inference uses the running ones.
    """

    op: ClassVar[str] = "batch_norm"
    prefix: ClassVar[str] = "bn"

    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        momentum = positive(self.momentum, "momentum")
        if momentum > 1:
            raise ShapeError(f"momentum must be above 0 and at most 1, got {self.momentum}")
        self._set(eps=positive(self.eps, "eps"), momentum=momentum)

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        shape = (input_shapes[0][0],)
        return {
            "weight": ParameterSpec(shape),
            "bias": ParameterSpec(shape),
            "running_mean": ParameterSpec(shape, trainable=False),
            "running_var": ParameterSpec(shape, trainable=False),
        }


@dataclass(frozen=True)
class ScaleShift(Operator):
    """x · scale + shift per channel (or per feature of a flat input)."""

    op: ClassVar[str] = "scale_shift"
    prefix: ClassVar[str] = "scale"

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        shape = (input_shapes[0][0],)
        return {"scale": ParameterSpec(shape), "shift": ParameterSpec(shape)}


@dataclass(frozen=True)
class LayerNorm(Operator):
    """(x - mean) / sqrt(var + eps) · weight + bias, mean and variance over the channels.

    Each pixel of an image has statistics of its own (as in ConvNeXt); those of a flat input are
    over its features. The variance is the mean squared difference from the mean.
    """

    op: ClassVar[str] = "layer_norm"
    prefix: ClassVar[str] = "ln"

    eps: float = 1e-6

    def __post_init__(self) -> None:
        self._set(eps=positive(self.eps, "eps"))

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        shape = (input_shapes[0][0],)
        return {"weight": ParameterSpec(shape), "bias": ParameterSpec(shape)}


@dataclass(frozen=True)
class LRN(Operator):
    """x / (bias + alpha / size · Σ x²)^beta, the sum over the `size` channels around each one.

    The window of channel c is c - (size - 1) // 2 to c + size // 2, cut off at the ends (as ONNX
    defines it; AlexNet's and GoogLeNet's local response normalisation).
    """

    op: ClassVar[str] = "lrn"
    prefix: ClassVar[str] = "lrn"

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    def __post_init__(self) -> None:
        alpha = finite(self.alpha, "alpha")
        if alpha < 0:
            raise ShapeError(f"alpha must be at least 0, got {self.alpha}")
        self._set(
            size=integer(self.size, "size", 1),
            alpha=alpha,
            beta=finite(self.beta, "beta"),
            bias=positive(self.bias, "bias"),
        )

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return image(input_shapes[0], self.op)


@dataclass(frozen=True)
class Dropout(Operator):
    """Zeroes a share `rate` of the values while training and scales the rest; else the identity."""

    op: ClassVar[str] = "dropout"
    prefix: ClassVar[str] = "dropout"

    rate: float = 0.5

    def __post_init__(self) -> None:
        zero = not isinstance(self.rate, bool) and self.rate == 0
        rate = 0.0 if zero else positive(self.rate, "rate")
        if rate >= 1:
            raise ShapeError(f"rate must be at least 0 and below 1, got {self.rate}")
        self._set(rate=rate)
