"""What kernels do with a value before it goes to memory: bounds and a curve (csrc/cs.h)."""

from typing import NamedTuple

import numpy as np

from convserve.errors import UnknownNameError
from convserve.kernels._arguments import float32_array

from libc.stdint cimport int64_t

from convserve.kernels._core cimport Buffer, table

cdef extern from "cs.h" nogil:
    enum: CS_NO_CURVE, CS_LEAKY_RELU, CS_ELU, CS_SIGMOID, CS_HARD_SIGMOID, CS_HARD_SWISH, CS_SILU
    enum: CS_GELU, CS_GELU_TANH, CS_TANH, CS_EXP

CURVES = {
    "none": CS_NO_CURVE,
    "leaky_relu": CS_LEAKY_RELU,        # a: the slope below 0
    "elu": CS_ELU,                      # a
    "sigmoid": CS_SIGMOID,
    "hard_sigmoid": CS_HARD_SIGMOID,    # a x + b within [0, 1]
    "hard_swish": CS_HARD_SWISH,
    "silu": CS_SILU,
    "gelu": CS_GELU,
    "gelu_tanh": CS_GELU_TANH,
    "tanh": CS_TANH,
    "exp": CS_EXP,
}


class Activation(NamedTuple):
    """A value is held within [low, high] or, where there is a curve, put through it."""

    curve: str = "none"
    a: float = 0.0
    b: float = 0.0
    low: float = float("-inf")
    high: float = float("inf")


LINEAR = Activation()


cdef cs_activation described(activation) except *:
    cdef cs_activation f
    if activation is None:
        activation = LINEAR
    if activation.curve not in CURVES:
        raise UnknownNameError(
            f"unknown activation curve {activation.curve!r}; known: {', '.join(CURVES)}"
        )
    f.curve, f.a, f.b = CURVES[activation.curve], activation.a, activation.b
    f.low, f.high = activation.low, activation.high
    return f


def activate(x, activation):
    """The activation of each element: float32 of any shape -> float32 of that shape."""
    cdef cs_activation f = described(activation)
    cdef const float[::1] xv = np.ascontiguousarray(float32_array(x, "activate: x")).reshape(-1)
    cdef int64_t i, size = xv.shape[0], block = table().block
    cdef int64_t vectors = (size + block - 1) // block
    cdef Buffer buffer = Buffer(vectors * block)
    y = np.empty(x.shape, np.float32)
    cdef float[::1] yv = y.reshape(-1)
    for i in range(size):
        buffer.data[i] = xv[i]
    table().activate(&f, vectors, buffer.data, block, buffer.data, block)
    for i in range(size):
        yv[i] = buffer.data[i]
    return y
