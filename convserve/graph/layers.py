"""The operators of a graph: frozen dataclasses that hold their attributes and shape rules.

    conv = layers.Conv2d(16, 3, padding=1)
    conv.infer([(3, 32, 32)])          # (16, 32, 32)
    conv.parameters([(3, 32, 32)])     # {"weight": (16, 3, 3, 3), "bias": (16,)}
    conv.macs([(3, 32, 32)])           # 442368

Shapes are those of one image: (channels, height, width), or (features,) once flat. A wrong type is
a TypeError, a size that does not fit a ShapeError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import Any, ClassVar

from convserve.errors import ShapeError, UnknownNameError
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
    positive,
)

__all__ = [
    "Add",
    "Affine",
    "AvgPool2d",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "MaxPool2d",
    "Operator",
    "ParameterSpec",
    "ReLU",
    "Shape",
    "Softmax",
    "from_attributes",
    "operators",
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
class GlobalAvgPool2d(Operator):
    """The mean of each channel: (C, H, W) to (C, 1, 1)."""

    op: ClassVar[str] = "global_avg_pool2d"
    prefix: ClassVar[str] = "global_pool"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return image(input_shapes[0], self.op)[0], 1, 1


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


@dataclass(frozen=True)
class Flatten(Operator):
    """(C, H, W) to (C · H · W,), in row-major order."""

    op: ClassVar[str] = "flatten"
    prefix: ClassVar[str] = "flatten"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        return (prod(input_shapes[0]),)


@dataclass(frozen=True)
class ReLU(Operator):
    """max(x, 0)."""

    op: ClassVar[str] = "relu"
    prefix: ClassVar[str] = "relu"


@dataclass(frozen=True)
class Softmax(Operator):
    """exp(x) / Σ exp(x) over the features of a flat input: scores to probabilities."""

    op: ClassVar[str] = "softmax"
    prefix: ClassVar[str] = "softmax"

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        flat(input_shapes[0], self.op)
        return input_shapes[0]


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


@dataclass(frozen=True)
class Add(Operator):
    """The sum of two inputs of equal shape: the end of a residual block."""

    op: ClassVar[str] = "add"
    prefix: ClassVar[str] = "add"
    arity: ClassVar[int | None] = 2

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        first, second = input_shapes
        if first != second:
            raise ShapeError(f"add: the inputs must have equal shapes, got {first} and {second}")
        return first


@dataclass(frozen=True)
class Concat(Operator):
    """Two or more images of equal height and width, joined along the channels."""

    op: ClassVar[str] = "concat"
    prefix: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def infer(self, input_shapes: Sequence[Shape]) -> Shape:
        first = image(input_shapes[0], self.op)
        for shape in input_shapes:
            if image(shape, self.op)[1:] != first[1:]:
                raise ShapeError(
                    f"concat: the inputs must have equal height and width, got {first} and {shape}"
                )
        return sum(shape[0] for shape in input_shapes), *first[1:]


_OPERATORS: dict[str, type[Operator]] = {
    cls.op: cls
    for cls in (
        Conv2d,
        MaxPool2d,
        AvgPool2d,
        GlobalAvgPool2d,
        Affine,
        Flatten,
        ReLU,
        Softmax,
        BatchNorm,
        Dropout,
        Add,
        Concat,
    )
}


def operators() -> dict[str, type[Operator]]:
    """Every operator class by its name in files."""
    return dict(_OPERATORS)


def from_attributes(op: str, attributes: Mapping[str, Any]) -> Operator:
    """The operator of that name; the inverse of `attributes()`.

    An attribute with a default may be absent (an older file), an unknown one may not be there.
    Errors: UnknownNameError, ShapeError, TypeError.
    """
    cls = _OPERATORS.get(op)
    if cls is None:
        raise UnknownNameError(f"unknown operator {op!r:.80}; known: {', '.join(_OPERATORS)}")
    known = {f.name: f.default is MISSING for f in fields(cls)}
    for name in attributes:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise UnknownNameError(f"{op} has no attribute {name!r:.80}; it has: {allowed}")
    for name, required in known.items():
        if required and name not in attributes:
            raise ShapeError(f"{op} lacks the attribute {name!r}")
    return cls(**attributes)


def _pair(value: PairLike) -> tuple[int, int]:
    """A normalised field, for the type checker."""
    assert isinstance(value, tuple)
    return value
