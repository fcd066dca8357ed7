"""Which kernel computes a convolution: a function of its shape alone, so that plans are the same.

Effective GFLOP/s of one thread (2 x 9 x C x O x H x W over time) on a Zen 4 with AVX-512, where
direct convolution runs at 95 % of the peak of 117; images a batch in brackets:

    C, O, size        direct   F(2, 3)   F(4, 3)
    16, 16, 28           113       153       234
    32, 64, 16           113       202       333
    64, 64, 56           114       215       338
    128, 128, 14         114       218       264
    256, 256, 7 (8)      108       158       215
    512, 512, 7 (8)      108       170       195
    512, 512, 7 (1)      107       156       115
    64, 64, 4 (8)        116       208       320
"""

from __future__ import annotations

from convserve.graph import layers
from convserve.graph.layers import Shape
from convserve.kernels._arguments import Window, halves

__all__ = ["can_pool", "is_depthwise", "winograd_tile"]

# Winograd weights of F(4, 3), 36 a filter and channel, that no cache holds are read from memory
# for each image; those of F(2, 3) take 16.
CACHED_WEIGHTS = 24 << 20  # bytes


def winograd_tile(op: layers.Conv2d, shape: tuple[int, int, int], window: Window) -> int:
    """Outputs a side of a Winograd tile, 4 or 2; 0 for direct convolution."""
    if window[:6] != (3, 3, 1, 1, 1, 1) or op.groups > 1 or min(shape[0], op.out_channels) < 8:
        return 0
    if min(window.oh, window.ow) <= 2:
        return 2
    weights = 36 * 4 * shape[0] * op.out_channels
    return 4 if weights <= CACHED_WEIGHTS else 2


def is_depthwise(op: layers.Conv2d, shape: Shape) -> bool:
    """Whether the convolution has one filter for each channel of an input of that shape."""
    return 1 < op.groups == shape[0] == op.out_channels


def can_pool(
    op: layers.Conv2d,
    shape: tuple[int, int, int],
    pool: layers.MaxPool2d | layers.AvgPool2d,
    made: tuple[int, int, int],
) -> bool:
    """Whether the convolution of an image of `shape`, which makes one of `made`, can pool it."""
    if is_depthwise(op, shape):
        return False
    if winograd_tile(op, shape, op.window([shape])):
        return isinstance(pool, layers.MaxPool2d) and halves(pool.window([made]), *made[1:])
    return True
