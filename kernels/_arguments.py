"""Checks of the kernels' arguments, and the one formula of the output size.

Pure Python and importable without compiled code: the shape rules of `convserve.graph` use the same
functions, so a size is computed, and a wrong one refused, in one place only. Messages name the
parameter, what was given and what is allowed. A wrong type is a TypeError, a wrong value a
ShapeError. A bool is not an integer here; NumPy's integers are.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convserve.errors import ShapeError

# Sizes are 32-bit in the C kernels.
LIMIT = 2**31 - 1

Float32Array: TypeAlias = npt.NDArray[np.float32]
Pair: TypeAlias = tuple[int, int]
Sides: TypeAlias = tuple[Pair, Pair]
# What callers may write for them.
PairLike: TypeAlias = "int | tuple[int, int]"
PaddingLike: TypeAlias = "int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]"


class Window(NamedTuple):
    """A filter or pooling window over an image: size, stride, dilation, padding, output size."""

    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    pt: int
    pb: int
    pl: int
    pr: int
    oh: int
    ow: int


def halves(window: Window, height: int, width: int) -> bool:
    """Whether a pooling window takes 2 x 2 values of an image that wide and high, none twice."""
    clipped = 2 * window.oh > height or 2 * window.ow > width
    return window[:4] == (2, 2, 2, 2) and window.pt == window.pl == 0 and not clipped


def integer(value: object, name: str, minimum: int = 0) -> int:
    """The value as an int within [minimum, 2**31 - 1]."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_show(value)}") from None
    if not minimum <= number <= LIMIT:
        raise ShapeError(f"{name} must be from {minimum} to {LIMIT}, got {_show(number)}")
    return number


def pair(value: object, name: str, minimum: int = 1) -> Pair:
    """(h, w) from an integer that stands for both, or from two of them."""
    if not isinstance(value, (tuple, list)):
        both = integer(value, name, minimum)
        return both, both
    if len(value) != 2:
        raise ShapeError(f"{name} must be an integer or (h, w), got {_show(value)}")
    return integer(value[0], f"{name}[0]", minimum), integer(value[1], f"{name}[1]", minimum)


def padding_sides(value: object, name: str = "padding") -> Sides:
    """((top, bottom), (left, right)) from an integer, (h, w), or all four."""
    if isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value):
        if len(value) != 2 or not all(isinstance(v, (tuple, list)) and len(v) == 2 for v in value):
            raise ShapeError(
                f"{name} must be an integer, (h, w) or ((top, bottom), (left, right)), "
                f"got {_show(value)}"
            )
        return pair(value[0], f"{name}[0]", 0), pair(value[1], f"{name}[1]", 0)
    h, w = pair(value, name, 0)
    return (h, h), (w, w)


def output_size(
    size: int,
    kernel: int,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    dilation: int = 1,
    rounding: str = "error",
    name: str = "output_size",
    axis: str = "size",
) -> int:
    """How many windows fit: (size + before + after - (dilation * (kernel - 1) + 1)) / stride + 1.

    All sizes are checked integers of one axis. Where the stride does not divide, "error" raises a
    ShapeError, "floor" leaves the rest out, and "ceil" adds a window that reaches beyond the
    padding, unless it would start in the far padding or beyond (as PyTorch and ONNX do).
    """
    padded = size + before + after
    extent = dilation * (kernel - 1) + 1
    if padded > LIMIT:
        raise ShapeError(f"{name}: the padded {axis} {padded} is over the limit {LIMIT}")
    if extent > padded:
        dilated = f" with dilation {dilation}" if dilation > 1 else ""
        raise ShapeError(
            f"{name}: the window's {axis} {extent}{dilated} must not exceed the input's: "
            f"{size} + padding {before} + {after}"
        )
    steps, rest = divmod(padded - extent, stride)
    if rest and rounding == "error":
        raise ShapeError(
            f"{name}: stride {stride} does not divide the {axis}: ({size} + {before} + {after} - "
            f"{extent}) / {stride} + 1 = {(padded - extent) / stride + 1:.6g}; "
            'change the sizes or ask for another rounding, such as "floor"'
        )
    if rest and rounding == "ceil" and (steps + 1) * stride < size + before:
        steps += 1
    return steps + 1


def conv_window(
    hw: tuple[int, int],
    kernel_hw: tuple[int, int],
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    rounding: object = "error",
    name: str = "conv2d",
) -> Window:
    """The window of a convolution over images of hw = (height, width)."""
    kh, kw = pair(kernel_hw, f"{name}: kernel size")
    dh, dw = pair(dilation, f"{name}: dilation")
    sides = padding_sides(padding, f"{name}: padding")
    rounding = _rounding(rounding, name, ("error", "floor"))
    return _window(hw, (kh, kw), pair(stride, f"{name}: stride"), (dh, dw), sides, rounding, name)


def pool_window(
    hw: tuple[int, int],
    size: object,
    stride: object = None,
    padding: object = 0,
    rounding: object = "error",
    name: str = "max_pool2d",
) -> Window:
    """The window of a pooling over images of hw = (height, width); the stride defaults to the size.

    Padding must be smaller than the size on every side, so that each window touches the input.
    """
    kh, kw = pair(size, f"{name}: size")
    steps = (kh, kw) if stride is None else pair(stride, f"{name}: stride")
    sides = padding_sides(padding, f"{name}: padding")
    for kernel, before_after, axis in zip((kh, kw), sides, ("height", "width"), strict=True):
        if max(before_after) >= kernel:
            raise ShapeError(
                f"{name}: padding must be smaller than the window, got padding "
                f"{max(before_after)} for a window's {axis} of {kernel}"
            )
    rounding = _rounding(rounding, name, ("error", "floor", "ceil"))
    return _window(hw, (kh, kw), steps, (1, 1), sides, rounding, name)


def float32_array(
    value: object, name: str, ranks: int | tuple[int, ...] | None = None
) -> Float32Array:
    """The same array, if it is float32 of such a rank (None: any) and only axis 0 may be empty.

    An array whose elements are not aligned is copied, since compiled code may not read it.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a numpy array of float32, got {type(value).__name__}")
    if value.dtype != np.float32:
        raise TypeError(f"{name} must be an array of float32, got {value.dtype}")
    if ranks is not None:
        allowed = (ranks,) if isinstance(ranks, int) else ranks
        if value.ndim not in allowed:
            axes = " or ".join(str(rank) for rank in allowed)
            raise ShapeError(f"{name} must have {axes} axes, got shape {value.shape}")
        if 0 in value.shape[1:]:
            raise ShapeError(f"{name} must not be empty beyond its first axis, got {value.shape}")
    return value if value.flags.aligned else value.copy()


def float32_shaped(value: object, name: str, shape: tuple[int, ...], why: str) -> Float32Array:
    """The same array, if it is float32 of exactly this shape; `why` says what sets it."""
    array = float32_array(value, name)
    if array.shape != shape:
        raise ShapeError(f"{name} must have the shape {shape} ({why}), got {array.shape}")
    return array


def conv_groups(channels: int, weight_shape: tuple[int, ...], groups: object, name: str) -> int:
    """The number of groups, if x's channels and an OIHW weight fit it."""
    count = integer(groups, f"{name}: groups", 1)
    filters, depth = weight_shape[:2]
    integer(channels, f"{name}: channels", 1)
    integer(filters, f"{name}: filters")
    if filters < 1:
        raise ShapeError(f"{name}: weight must hold at least one filter, got shape {weight_shape}")
    if channels % count or filters % count:
        raise ShapeError(
            f"{name}: groups must divide the input's channels and the filters, "
            f"got groups {count}, channels {channels}, filters {filters}"
        )
    if depth * count != channels:
        raise ShapeError(
            f"{name}: weight must have channels / groups = {channels // count} channels to fit "
            f"x with {channels} channels and groups {count}, got {depth} (shape {weight_shape})"
        )
    return count


def positive(value: object, name: str) -> float:
    """The value as a finite float above zero."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {_show(value)}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the floats
        number = float("inf")
    if not 0.0 < number < float("inf"):
        raise ShapeError(f"{name} must be finite and above 0, got {_show(value)}")
    return number


def _rounding(value: object, name: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: rounding must be a string, got {_show(value)}")
    if value not in allowed:
        choices = ", ".join(f'"{a}"' for a in allowed)
        raise ShapeError(f"{name}: rounding must be one of {choices}, got {_show(value)}")
    return value


def _window(
    hw: tuple[int, int],
    kernel: Pair,
    stride: Pair,
    dilation: Pair,
    sides: Sides,
    rounding: str,
    name: str,
) -> Window:
    h, w = pair(hw, f"{name}: (height, width)")
    (kh, kw), (sh, sw), (dh, dw), ((pt, pb), (pl, pr)) = kernel, stride, dilation, sides
    oh = output_size(h, kh, sh, pt, pb, dh, rounding, name, "height")
    ow = output_size(w, kw, sw, pl, pr, dw, rounding, name, "width")
    return Window(kh, kw, sh, sw, dh, dw, pt, pb, pl, pr, oh, ow)


def _show(value: Any) -> str:
    """The value for a message, cut short: an int may have thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {value.shape}"
    try:
        text = repr(value)
    except ValueError:  # an int with too many digits inside a tuple
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
