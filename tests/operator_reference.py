"""Naive float64 evaluation of the operators that have no public kernel, one definition each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convserve.graph import layers

Array = np.ndarray[Any, Any]

erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def activation(op: layers.Operator, x: Array) -> Array:
    """A function of one value; NaN stays NaN."""
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        match op:
            case layers.ReLU():
                return np.maximum(x, 0)
            case layers.LeakyReLU(slope=slope):
                return np.where(x > 0, x, slope * x)
            case layers.Clip(low=low, high=high):
                return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)
            case layers.Sigmoid():
                return sigmoid(x)
            case layers.HardSigmoid(alpha=alpha, beta=beta):
                return np.clip(alpha * x + beta, 0, 1)
            case layers.HardSwish():
                return x * np.clip(x / 6 + 0.5, 0, 1)
            case layers.SiLU():
                return x * sigmoid(x)
            case layers.GELU(approximate="tanh"):
                # (1 + tanh(u)) / 2 = sigmoid(2 u), which does not cancel
                return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
            case layers.GELU():
                return x * 0.5 * erfc(-x / math.sqrt(2))
            case layers.Tanh():
                return np.tanh(x)
            case layers.ELU(alpha=alpha):
                return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    raise AssertionError(op)


def slope(op: layers.Operator) -> float:
    """The largest steepness of an activation."""
    match op:
        case layers.LeakyReLU(slope=a) | layers.ELU(alpha=a):
            return max(1.0, abs(a))
        case layers.HardSigmoid(alpha=a):
            return abs(a)
        case layers.HardSwish():
            return 1.5
        case layers.SiLU() | layers.GELU():
            return 1.13
    return 1.0


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """x [N, C, ...]: over axis 1."""
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    difference = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((difference**2).mean(axis=1, keepdims=True) + eps)
    return difference / deviation * weight.reshape(per_channel) + bias.reshape(per_channel)


def lrn_base(x: Array, op: layers.LRN, other: Array | None = None) -> Array:
    """bias + alpha / size * the sum of x^2 (or x * other) over the window of each channel."""
    product = x * (x if other is None else other)
    base = np.full(x.shape, op.bias)
    for c in range(x.shape[1]):
        first, end = max(0, c - (op.size - 1) // 2), c + op.size // 2 + 1
        base[:, c] += op.alpha / op.size * product[:, first:end].sum(axis=1)
    return base


def channel_shuffle(x: Array, groups: int) -> Array:
    n, c, *hw = x.shape
    return x.reshape(n, groups, c // groups, *hw).swapaxes(1, 2).reshape(x.shape)


def pad(x: Array, padding: Any, value: float) -> Array:
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value)


def crop(x: Array, padding: Any) -> Array:
    (top, bottom), (left, right) = padding
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
