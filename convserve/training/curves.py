"""Functions of one value and their derivatives, in NumPy and in the precision of their argument."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, inf, pi, sqrt
from typing import Any, NamedTuple

import numpy as np

from convserve.graph import layers
from convserve.graph.layers import Operator

__all__ = ["CURVES", "Curve"]

Values = Any  # an array of float32 or float64


class Curve(NamedTuple):
    """An operator's function, and its derivative by the same argument; at a bend that of a side."""

    value: Callable[[Any, Values], Values]
    slope: Callable[[Any, Values], Values]


def _sigmoid(x: Values) -> Values:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _normal(x: Values) -> Values:
    """The normal distribution's share below x."""
    return np.asarray(np.vectorize(erf, otypes=[float])(x / sqrt(2)) / 2 + 0.5, x.dtype)


def _bounds(op: layers.Clip) -> tuple[float, float]:
    return -inf if op.low is None else op.low, inf if op.high is None else op.high


def _inside(x: Values, low: float, high: float) -> Values:
    return ((x > low) & (x < high)).astype(x.dtype)


def _tanh_argument(x: Values) -> tuple[Values, Values]:
    """u of gelu ≈ x · sigmoid(u), and its derivative."""
    scale = x.dtype.type(2 * sqrt(2 / pi))
    return scale * (x + 0.044715 * x**3), scale * (1 + 3 * 0.044715 * x**2)


def _gelu(op: layers.GELU, x: Values) -> Values:
    if op.approximate == "tanh":
        return x * _sigmoid(_tanh_argument(x)[0])
    return x * _normal(x)


def _gelu_slope(op: layers.GELU, x: Values) -> Values:
    if op.approximate == "tanh":
        u, du = _tanh_argument(x)
        s = _sigmoid(u)
        return s + x * s * (1 - s) * du
    return _normal(x) + x * np.exp(-x * x / 2) / x.dtype.type(sqrt(2 * pi))


CURVES: dict[type[Operator], Curve] = {
    layers.Clip: Curve(
        lambda op, x: np.clip(x, *_bounds(op)), lambda op, x: _inside(x, *_bounds(op))
    ),
    layers.ELU: Curve(
        lambda op, x: np.where(x > 0, x, op.alpha * np.expm1(np.minimum(x, 0))),
        lambda op, x: np.where(x > 0, 1, op.alpha * np.exp(np.minimum(x, 0))),
    ),
    layers.GELU: Curve(_gelu, _gelu_slope),
    layers.HardSigmoid: Curve(
        lambda op, x: np.clip(op.alpha * x + op.beta, 0, 1),
        lambda op, x: op.alpha * _inside(op.alpha * x + op.beta, 0, 1),
    ),
    layers.HardSwish: Curve(
        lambda op, x: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda op, x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
    ),
    layers.LeakyReLU: Curve(
        lambda op, x: np.where(x > 0, x, op.slope * x),
        lambda op, x: np.where(x > 0, 1, op.slope),
    ),
    layers.SiLU: Curve(
        lambda op, x: x * _sigmoid(x),
        lambda op, x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    ),
    layers.Sigmoid: Curve(lambda op, x: _sigmoid(x), lambda op, x: _sigmoid(x) * (1 - _sigmoid(x))),
    layers.Tanh: Curve(lambda op, x: np.tanh(x), lambda op, x: 1 - np.tanh(x) ** 2),
}
