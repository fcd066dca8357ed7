"""What the kernels can do, whichever of them a plan takes."""

from __future__ import annotations

from convserve.graph import layers
from convserve.graph.layers import Shape
from convserve.kernels._arguments import halves
from convserve.plan.activations import activation_of

__all__ = ["can_pool", "can_store", "can_winograd", "can_winograd6", "is_depthwise"]

# Fewer channels fill no vector of the transforms.
WINOGRAD_CHANNELS = 8
# F(6, 3) reads larger weights and is less exact than F(4, 3): worth a thought where, by
# measurement, it is the quicker one in a network, over large maps of few channels.
WINOGRAD6_PIXELS, WINOGRAD6_CHANNELS = 36, 48


def is_depthwise(op: layers.Conv2d, shape: Shape) -> bool:
    """Whether the convolution has one filter for each channel of an input of that shape."""
    return 1 < op.groups == shape[0] == op.out_channels


def can_winograd(op: layers.Conv2d, shape: tuple[int, int, int]) -> bool:
    """Whether Winograd kernels can compute the convolution of a blocked image of that shape."""
    few = min(shape[0], op.out_channels) < WINOGRAD_CHANNELS
    return not few and op.groups == 1 and op.window([shape])[:6] == (3, 3, 1, 1, 1, 1)


def can_winograd6(op: layers.Conv2d, shape: tuple[int, int, int]) -> bool:
    """Whether F(6, 3) is to be considered too."""
    few = max(shape[0], op.out_channels) <= WINOGRAD6_CHANNELS
    return few and min(shape[1:]) >= WINOGRAD6_PIXELS and can_winograd(op, shape)


def can_pool(
    op: layers.Conv2d,
    shape: tuple[int, int, int],
    pool: layers.MaxPool2d | layers.AvgPool2d,
    made: tuple[int, int, int],
) -> bool:
    """Whether every kernel for the convolution of `shape` to `made` can pool what it stores."""
    if is_depthwise(op, shape):
        return False
    if can_winograd(op, shape):
        return isinstance(pool, layers.MaxPool2d) and halves(pool.window([made]), *made[1:])
    return True


def can_store(op: layers.Operator, shape: Shape) -> bool:
    """Whether the kernel that makes images of that shape can store them as NCHW."""
    by_rows = isinstance(
        op,
        layers.Conv2d | layers.MaxPool2d | layers.AvgPool2d | layers.BatchNorm | layers.ScaleShift
        | layers.PReLU | layers.Add | layers.Sub | layers.Mul | layers.LRN | layers.Pad
        | layers.Crop,
    )  # fmt: skip
    return len(shape) == 3 and shape[1:] != (1, 1) and (by_rows or activation_of(op) is not None)
