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
def conv2d_backward(
    grad: Float32Array,
    x: Float32Array,
    weight: Float32Array,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    rounding: str = "error",
) -> tuple[Float32Array, Float32Array, Float32Array]: ...
