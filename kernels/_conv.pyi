from typing import Literal, overload

from convserve.kernels._arguments import Float32Array, PaddingLike, PairLike

def conv2d(
    x: Float32Array,
    weight: Float32Array,
    bias: Float32Array | None = None,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    rounding: str = "error",
) -> Float32Array: ...
@overload
def conv2d_backward(
    grad: Float32Array,
    x: Float32Array,
    weight: Float32Array,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    rounding: str = "error",
    input_gradient: Literal[True] = True,
) -> tuple[Float32Array, Float32Array, Float32Array]: ...
@overload
def conv2d_backward(
    grad: Float32Array,
    x: Float32Array,
    weight: Float32Array,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    rounding: str = "error",
    *,
    input_gradient: bool,
) -> tuple[Float32Array | None, Float32Array, Float32Array]: ...
