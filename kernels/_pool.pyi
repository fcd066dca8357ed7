from convserve.kernels._arguments import Float32Array, PaddingLike, PairLike

def max_pool2d(
    x: Float32Array,
    size: PairLike,
    stride: PairLike | None = None,
    padding: PaddingLike = 0,
    rounding: str = "error",
) -> Float32Array: ...
def max_pool2d_backward(
    grad: Float32Array,
    x: Float32Array,
    size: PairLike,
    stride: PairLike | None = None,
    padding: PaddingLike = 0,
    rounding: str = "error",
) -> Float32Array: ...
def avg_pool2d(
    x: Float32Array,
    size: PairLike,
    stride: PairLike | None = None,
    padding: PaddingLike = 0,
    rounding: str = "error",
    count_include_pad: bool = True,
) -> Float32Array: ...
def avg_pool2d_backward(
    grad: Float32Array,
    x: Float32Array,
    size: PairLike,
    stride: PairLike | None = None,
    padding: PaddingLike = 0,
    rounding: str = "error",
    count_include_pad: bool = True,
) -> Float32Array: ...
def global_avg_pool2d(x: Float32Array) -> Float32Array: ...
def global_avg_pool2d_backward(grad: Float32Array, x: Float32Array) -> Float32Array: ...
