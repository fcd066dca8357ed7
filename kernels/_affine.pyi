from convserve.kernels._arguments import Float32Array

def affine(
    x: Float32Array, weight: Float32Array, bias: Float32Array | None = None
) -> Float32Array: ...
def affine_backward(
    grad: Float32Array, x: Float32Array, weight: Float32Array
) -> tuple[Float32Array, Float32Array, Float32Array]: ...
