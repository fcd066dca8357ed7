from convserve.kernels._arguments import Float32Array

def relu(x: Float32Array) -> Float32Array: ...
def relu_backward(grad: Float32Array, x: Float32Array) -> Float32Array: ...
def prelu(x: Float32Array, slope: Float32Array) -> Float32Array: ...
def prelu_backward(
    grad: Float32Array, x: Float32Array, slope: Float32Array
) -> tuple[Float32Array, Float32Array]: ...
def softmax(x: Float32Array) -> Float32Array: ...
def softmax_backward(grad: Float32Array, x: Float32Array) -> Float32Array: ...
def batch_norm(
    x: Float32Array,
    mean: Float32Array,
    var: Float32Array,
    weight: Float32Array | None = None,
    bias: Float32Array | None = None,
    eps: float = 1e-5,
) -> Float32Array: ...
def batch_norm_train(
    x: Float32Array,
    weight: Float32Array | None = None,
    bias: Float32Array | None = None,
    eps: float = 1e-5,
) -> tuple[Float32Array, Float32Array, Float32Array]: ...
def batch_norm_backward(
    grad: Float32Array,
    x: Float32Array,
    mean: Float32Array,
    var: Float32Array,
    weight: Float32Array | None = None,
    eps: float = 1e-5,
) -> tuple[Float32Array, Float32Array, Float32Array]: ...
