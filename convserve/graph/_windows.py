"""Convolution, pooling and affine layers: what slides a window over an image, or sees all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from convserve.errors import ShapeError
from convserve.graph._operator import (
    Operator,
    ParameterSpec,
    Shape,
    boolean,
    choice,
    flat,
    image,
    with_bias,
)
from convserve.kernels._arguments import (
    PaddingLike,
    PairLike,
    Window,
    conv_window,
    integer,
    padding_sides,
    pair,
    pool_window,
)

__all__ = [
    "Affine",
    "AvgPool2d",
    "Conv2d",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "MaxPool2d",
]


@dataclass(frozen=True)
class Conv2d(Operator):
    """Convolution: `out_channels` filters shared over all places of the image.

    weight [out_channels, C / groups, KH, KW], bias [out_channels]. Output size
    (H + PT + PB - (D (KH - 1) + 1)) / S + 1; rounding "error" refuses one that does not divide.
    """

    op: ClassVar[str] = "conv2d"
    prefix: ClassVar[str] = "conv"

    out_channels: int
    kernel_size: PairLike
    stride: PairLike = 1
    padding: PaddingLike = 0
    dilation: PairLike = 1
    groups: int = 1
    bias: bool = True
    rounding: str = "error"

    def __post_init__(self) -> None:
        self._set(
            out_channels=integer(self.out_channels, "out_channels", 1),
            kernel_size=pair(self.kernel_size, "kernel_size"),
            stride=pair(self.stride, "stride"),
            padding=padding_sides(self.padding),
            dilation=pair(self.dilation, "dilation"),
            groups=integer(self.groups, "groups", 1),
            bias=boolean(self.bias, "bias"),
            rounding=choice(self.rounding, "rounding", ("error", "floor")),
        )
        if self.out_channels % self.groups:
            raise ShapeError(
                f"groups must divide out_channels, got groups {self.groups}, "
                f"out_channels {self.out_channels}"
            )

    def window(self, input_shapes: Sequence[Shape]) -> Window:
        """The filter's window over this input, with the output size."""
        channels, height, width = image(input_shapes[0], self.op)
        if channels % self.groups:
            raise ShapeError(
                f"{self.op}: groups must divide the input's channels, "
                f"got groups {self.groups}, channels {channels}"
            )
        return conv_window(
            (height, width),
            _pair(self.kernel_size),
            self.stride,
            self.padding,
            self.dilation,
            self.rounding,
        )

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        window = self.window(input_shapes)
        return self.out_channels, window.oh, window.ow

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        channels = input_shapes[0][0] // self.groups
        weight = ParameterSpec((self.out_channels, channels, *_pair(self.kernel_size)))
        return with_bias(weight, self.bias)

    def macs(self, input_shapes: Sequence[Shape]) -> int:
        weight = self.parameters(input_shapes)["weight"].shape
        _, oh, ow = self.infer(input_shapes)
        return prod(weight) * oh * ow


@dataclass(frozen=True)
class _Pool2d(Operator):
    """What pooling operators share; the stride defaults to the size."""

    prefix: ClassVar[str] = "pool"

    size: PairLike
    stride: PairLike | None = None
    padding: PaddingLike = 0
    rounding: str = "error"

    def __post_init__(self) -> None:
        size = pair(self.size, "size")
        self._set(
            size=size,
            stride=size if self.stride is None else pair(self.stride, "stride"),
            padding=padding_sides(self.padding),
            rounding=choice(self.rounding, "rounding", ("error", "floor", "ceil")),
        )

    def window(self, input_shapes: Sequence[Shape]) -> Window:
        """The pooling window over this input, with the output size."""
        _, height, width = image(input_shapes[0], self.op)
        return pool_window(
            (height, width), self.size, self.stride, self.padding, self.rounding, self.op
        )

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        window = self.window(input_shapes)
        return input_shapes[0][0], window.oh, window.ow


@dataclass(frozen=True)
class MaxPool2d(_Pool2d):
    """The largest value of each window, per channel; no parameters. The stride defaults to size."""

    op: ClassVar[str] = "max_pool2d"


@dataclass(frozen=True)
class AvgPool2d(_Pool2d):
    """The mean of each window, per channel; `count_include_pad` counts the padding's zeros too."""

    op: ClassVar[str] = "avg_pool2d"

    count_include_pad: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(count_include_pad=boolean(self.count_include_pad, "count_include_pad"))


@dataclass(frozen=True)
class _GlobalPool2d(Operator):
    """What both share: (C, H, W) to (C, 1, 1)."""

    prefix: ClassVar[str] = "global_pool"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return image(input_shapes[0], self.op)[0], 1, 1


@dataclass(frozen=True)
class GlobalAvgPool2d(_GlobalPool2d):
    """The mean of each channel: (C, H, W) to (C, 1, 1)."""

    op: ClassVar[str] = "global_avg_pool2d"


@dataclass(frozen=True)
class GlobalMaxPool2d(_GlobalPool2d):
    """The largest value of each channel: (C, H, W) to (C, 1, 1)."""

    op: ClassVar[str] = "global_max_pool2d"


@dataclass(frozen=True)
class Affine(Operator):
    """A fully connected layer: x · weightᵀ + bias, weight [out_features, in_features]."""

    op: ClassVar[str] = "affine"
    prefix: ClassVar[str] = "affine"

    out_features: int
    bias: bool = True

    def __post_init__(self) -> None:
        self._set(
            out_features=integer(self.out_features, "out_features", 1),
            bias=boolean(self.bias, "bias"),
        )

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        flat(input_shapes[0], self.op)
        return (self.out_features,)

    def parameters(self, input_shapes: Sequence[Shape]) -> dict[str, ParameterSpec]:
        return with_bias(ParameterSpec((self.out_features, input_shapes[0][0])), self.bias)

    def macs(self, input_shapes: Sequence[Shape]) -> int:
        return self.out_features * input_shapes[0][0]


def _pair(value: PairLike) -> tuple[int, int]:
    """A normalised field, for the type checker."""
    assert isinstance(value, tuple)
    return value
