"""Hypothesis strategies for the kernel tests: sizes that fit, and arrays in awkward memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Array = npt.NDArray[Any]

# Memory layouts of one and the same array; the gaps of "sliced" and "crop" hold NaN.
LAYOUTS = ("plain", "read-only", "reversed", "channels last", "sliced", "crop", "broadcast")

seeds = st.integers(0, 2**32 - 1)
layouts = st.sampled_from(LAYOUTS)
# Around the block sizes of the instruction sets: 4, 8 and 16 channels.
channels = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])


def normal(seed: int, *shape: int) -> Array:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def laid_out(array: Array, layout: str) -> Array:
    """The same values (but for "broadcast": those of the first image) in another layout."""
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    elif layout == "reversed":
        backwards = (slice(None, None, -1),) * array.ndim
        array = array[backwards].copy()[backwards]
    elif layout == "channels last":
        array = np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
    elif layout == "sliced":
        wide = np.full([2 * size + 1 for size in array.shape], np.nan, np.float32)
        wide[(slice(1, None, 2),) * array.ndim] = array
        array = wide[(slice(1, None, 2),) * array.ndim]
    elif layout == "crop":
        wide = np.full([size + 3 for size in array.shape], np.nan, np.float32)
        inner = tuple(slice(1, size + 1) for size in array.shape)
        wide[inner] = array
        array = wide[inner]
    elif layout == "broadcast" and array.shape[0]:
        array = np.broadcast_to(array[:1], array.shape)
    return array


@st.composite
def axis(draw: st.DrawFn, dilated: bool, pooled: bool) -> tuple[int, int, int, int, int, int, int]:
    """(size, kernel, stride, dilation, before, after, what does not fit) of one axis."""
    kernel = draw(st.integers(1, 5))
    stride = draw(st.integers(1, 6))
    dilation = draw(st.integers(1, 3)) if dilated else 1
    most = kernel - 1 if pooled else 4
    before, after = draw(st.integers(0, most)), draw(st.integers(0, most))
    extent = dilation * (kernel - 1) + 1
    steps = draw(st.integers(0, 8))
    rest = draw(st.integers(0, stride - 1))
    size = steps * stride + rest + extent - before - after
    while size < 1:
        size += stride
    return size, kernel, stride, dilation, before, after, rest


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Array, Array, Array, dict[str, Any]]:
    """x, weight, bias and the keyword arguments of a convolution that fits."""
    h, kh, sh, dh, pt, pb, rest_h = draw(axis(dilated=True, pooled=False))
    w, kw, sw, dw, pl, pr, rest_w = draw(axis(dilated=True, pooled=False))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 17]))
    depth = draw(channels) if groups < 3 else draw(st.integers(1, 3))
    each = draw(channels) if groups < 3 else draw(st.integers(1, 3))
    n, seed = draw(st.integers(0, 3)), draw(seeds)
    x = laid_out(normal(seed, n, groups * depth, h, w), draw(layouts))
    weight = laid_out(normal(seed + 1, groups * each, depth, kh, kw), draw(layouts))
    bias = laid_out(normal(seed + 2, groups * each), draw(st.sampled_from(["plain", "sliced"])))
    arguments = {
        "stride": (sh, sw),
        "padding": ((pt, pb), (pl, pr)),
        "dilation": (dh, dw),
        "groups": groups,
        "rounding": "floor" if rest_h or rest_w else draw(st.sampled_from(["error", "floor"])),
    }
    return x, weight, bias, arguments


@st.composite
def poolings(draw: st.DrawFn) -> tuple[Array, dict[str, Any]]:
    """x and the keyword arguments of a pooling that fits."""
    h, kh, sh, _, pt, pb, rest_h = draw(axis(dilated=False, pooled=True))
    w, kw, sw, _, pl, pr, rest_w = draw(axis(dilated=False, pooled=True))
    shape = draw(st.integers(0, 3)), draw(st.integers(1, 5)), h, w
    x = normal(draw(seeds), *shape)
    if draw(st.booleans()):  # few values, so that windows hold equal ones
        x = np.round(x)
    x = laid_out(x, draw(layouts))
    uneven = bool(rest_h or rest_w)
    return x, {
        "size": (kh, kw),
        "stride": (sh, sw),
        "padding": ((pt, pb), (pl, pr)),
        "rounding": draw(st.sampled_from(["floor", "ceil"] if uneven else ["error", "ceil"])),
    }
