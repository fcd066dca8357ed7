"""Forward and backward of every operator, on the public kernels: plain, to be checked by eye.

A forward returns the output and what its backward needs; the backward takes that and the gradient
by the output, and returns the gradients by the inputs and by the parameters. Gradients are never
changed in place, since branches of a graph may share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from convserve import kernels
from convserve.graph import layers
from convserve.graph.layers import Operator
from convserve.training.curves import CURVES
from convserve.training.dropout import CounterRandom
from convserve.training.step import Array

__all__ = ["RULES", "Rng", "Rule"]

Inputs = Sequence[Array]
Params = Mapping[str, Array]  # of one layer, by local name
Rng = CounterRandom | np.random.Generator | None  # None: inference mode
Grads = tuple[Sequence[Array], dict[str, Array]]  # by the inputs, by the parameters


class Rule(NamedTuple):
    """How one operator is trained. The operator is `Any`, as each rule knows its own class."""

    forward: Callable[[Any, Inputs, Params, Rng], tuple[Array, Any]]
    backward: Callable[[Any, Any, Array, Params], Grads]
    # By the parameters alone, for a layer that reads the network's input; None: nothing is saved.
    parameters: Callable[[Any, Any, Array, Params], dict[str, Array]] | None = None


def _with_bias(op: layers.Conv2d | layers.Affine, dweight: Array, dbias: Array) -> dict[str, Array]:
    return {"weight": dweight, "bias": dbias} if op.bias else {"weight": dweight}


def _conv_settings(op: layers.Conv2d) -> tuple[Any, ...]:
    return op.stride, op.padding, op.dilation, op.groups, op.rounding


def _conv2d(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.conv2d(x, params["weight"], params.get("bias"), *_conv_settings(op)), x


def _conv2d_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    dx, *dparams = kernels.conv2d_backward(grad, x, params["weight"], *_conv_settings(op))
    return [dx], _with_bias(op, *dparams)


def _conv2d_parameters(op: Any, x: Array, grad: Array, params: Params) -> dict[str, Array]:
    settings = _conv_settings(op)
    _, *dparams = kernels.conv2d_backward(
        grad, x, params["weight"], *settings, input_gradient=False
    )
    return _with_bias(op, *dparams)


def _affine(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.affine(x, params["weight"], params.get("bias")), x


def _affine_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    dx, *dparams = kernels.affine_backward(grad, x, params["weight"])
    return [dx], _with_bias(op, *dparams)


def _max_pool2d(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.max_pool2d(x, op.size, op.stride, op.padding, op.rounding), x


def _max_pool2d_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    return [kernels.max_pool2d_backward(grad, x, op.size, op.stride, op.padding, op.rounding)], {}


def _avg_settings(op: layers.AvgPool2d) -> tuple[Any, ...]:
    return op.size, op.stride, op.padding, op.rounding, op.count_include_pad


def _avg_pool2d(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.avg_pool2d(x, *_avg_settings(op)), x


def _avg_pool2d_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    return [kernels.avg_pool2d_backward(grad, x, *_avg_settings(op))], {}


def _global_avg_pool2d(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.global_avg_pool2d(x), x


def _global_avg_pool2d_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    return [kernels.global_avg_pool2d_backward(grad, x)], {}


def _relu(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    # The output is positive exactly where the input is, and the next layer keeps it anyway.
    y = kernels.relu(inputs[0])
    return y, y


def _relu_back(op: Any, y: Array, grad: Array, params: Params) -> Grads:
    return [kernels.relu_backward(grad, y)], {}


def _prelu(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.prelu(x, params["slope"]), x


def _prelu_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    dx, dslope = kernels.prelu_backward(grad, x, params["slope"])
    return [dx], {"slope": dslope}


def _softmax(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return kernels.softmax(x.reshape(x.shape[:2])).reshape(x.shape), x


def _softmax_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    rows = x.shape[:2]
    dx = kernels.softmax_backward(grad.reshape(rows), x.reshape(rows))
    return [dx.reshape(x.shape)], {}


def _batch_norm(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    weight, bias = params["weight"], params["bias"]
    running_mean, running_var = params["running_mean"], params["running_var"]
    if rng is None:
        return kernels.batch_norm(x, running_mean, running_var, weight, bias, op.eps), None
    y, mean, var = kernels.batch_norm_train(x, weight, bias, op.eps)
    # The running variance is the unbiased estimate, as in other frameworks: count / (count - 1).
    count = x.size // x.shape[1]
    running_mean += op.momentum * (mean - running_mean)
    running_var += op.momentum * (var * (count / max(count - 1, 1)) - running_var)
    return y, (x, mean, var)


def _batch_norm_back(op: Any, saved: Any, grad: Array, params: Params) -> Grads:
    x, mean, var = saved
    dx, dweight, dbias = kernels.batch_norm_backward(grad, x, mean, var, params["weight"], op.eps)
    return [dx], {"weight": dweight, "bias": dbias}


def _dropout(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    if rng is None or op.rate == 0:
        return x, None
    # Inverted: what is kept is scaled here, so that inference has nothing to do.
    kept = rng.random(x.shape, np.float32) >= np.float32(op.rate)
    mask = kept.astype(x.dtype) * x.dtype.type(1 / (1 - op.rate))
    return x * mask, mask


def _dropout_back(op: Any, mask: Any, grad: Array, params: Params) -> Grads:
    return [grad if mask is None else grad * mask], {}


def _flatten(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return x.reshape(len(x), int(np.prod(x.shape[1:]))), x.shape


def _flatten_back(op: Any, shape: tuple[int, ...], grad: Array, params: Params) -> Grads:
    return [grad.reshape(shape)], {}


def _curve(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return CURVES[type(op)].value(op, x).astype(x.dtype), x


def _curve_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    return [grad * CURVES[type(op)].slope(op, x).astype(x.dtype)], {}


def _global_max_pool2d(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    x = inputs[0]
    return x.max(axis=(2, 3), keepdims=True), x


def _global_max_pool2d_back(op: Any, x: Array, grad: Array, params: Params) -> Grads:
    # The first of equal largest values gets the gradient, as in max_pool2d.
    flat = x.reshape(*x.shape[:2], -1)
    dx = np.zeros_like(flat)
    np.put_along_axis(dx, flat.argmax(axis=2)[..., None], grad[..., 0], axis=2)
    return [dx.reshape(x.shape)], {}


def _mul(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    return inputs[0] * inputs[1], inputs


def _mul_back(op: Any, inputs: Any, grad: Array, params: Params) -> Grads:
    a, b = inputs
    return [_like(grad * b, a.shape), _like(grad * a, b.shape)], {}


def _like(grad: Array, shape: tuple[int, ...]) -> Array:
    # A (C, 1, 1) input went with every pixel, and gets the sum of what they send back.
    return grad if grad.shape == shape else grad.sum(axis=(2, 3), keepdims=True)


def _sub(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    return inputs[0] - inputs[1], [x.shape for x in inputs]


def _sub_back(op: Any, shapes: Any, grad: Array, params: Params) -> Grads:
    return [_like(grad, shapes[0]), _like(-grad, shapes[1])], {}


def _add(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    return inputs[0] + inputs[1], [x.shape for x in inputs]


def _add_back(op: Any, shapes: Any, grad: Array, params: Params) -> Grads:
    return [_like(grad, shape) for shape in shapes], {}


def _concat(op: Any, inputs: Inputs, params: Params, rng: Rng) -> tuple[Array, Any]:
    ends = np.cumsum([x.shape[1] for x in inputs])
    return np.concatenate(inputs, axis=1), ends[:-1]


def _concat_back(op: Any, ends: Any, grad: Array, params: Params) -> Grads:
    return np.split(grad, ends, axis=1), {}


RULES: dict[type[Operator], Rule] = {
    layers.Add: Rule(_add, _add_back),
    layers.Affine: Rule(_affine, _affine_back),
    layers.AvgPool2d: Rule(_avg_pool2d, _avg_pool2d_back),
    layers.BatchNorm: Rule(_batch_norm, _batch_norm_back),
    layers.Concat: Rule(_concat, _concat_back),
    layers.Conv2d: Rule(_conv2d, _conv2d_back, _conv2d_parameters),
    layers.Dropout: Rule(_dropout, _dropout_back),
    layers.Flatten: Rule(_flatten, _flatten_back),
    layers.GlobalAvgPool2d: Rule(_global_avg_pool2d, _global_avg_pool2d_back),
    layers.GlobalMaxPool2d: Rule(_global_max_pool2d, _global_max_pool2d_back),
    layers.MaxPool2d: Rule(_max_pool2d, _max_pool2d_back),
    layers.Mul: Rule(_mul, _mul_back),
    layers.PReLU: Rule(_prelu, _prelu_back),
    layers.ReLU: Rule(_relu, _relu_back),
    layers.Softmax: Rule(_softmax, _softmax_back),
    layers.Sub: Rule(_sub, _sub_back),
    **dict.fromkeys(CURVES, Rule(_curve, _curve_back)),
}
