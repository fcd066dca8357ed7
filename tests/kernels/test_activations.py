"""Activations over the whole range of floats, on every instruction set."""

from __future__ import annotations

import numpy as np
import operator_reference
import pytest

from convserve.errors import UnknownNameError
from convserve.graph import layers
from convserve.kernels._activation import CURVES, Activation, activate
from convserve.plan.activations import activation_of

TINY = float(np.finfo(np.float32).tiny)
EPS = float(np.finfo(np.float32).eps)
SPECIAL = np.array([0.0, -0.0, TINY, -TINY, 3.4e38, -3.4e38, np.inf, -np.inf], np.float32)


def floats() -> np.ndarray:
    """Every 16381st float, infinities among them, and more where the functions bend."""
    every = np.arange(0, 2**32, 16381, dtype=np.uint64).astype(np.uint32).view(np.float32)
    parts = [np.linspace(-end, end, 40001, dtype=np.float32) for end in (1, 20, 110)]
    x = np.concatenate([every, *parts, SPECIAL])
    return x[~np.isnan(x)]


X = floats()
# Allowed, in units of the last place; and where the formula itself cancels, of the largest term.
CASES: dict[str, tuple[layers.Operator, float, float]] = {
    "relu": (layers.ReLU(), 0, 0),
    "relu6": (layers.Clip(), 0, 0),
    "clip": (layers.Clip(-0.75, 2.5), 0, 0),
    "clip_low": (layers.Clip(-0.75, None), 0, 0),
    "clip_none": (layers.Clip(None, None), 0, 0),
    "leaky_relu": (layers.LeakyReLU(0.125), 1, 0),
    "elu": (layers.ELU(1.5), 2, 0),
    "sigmoid": (layers.Sigmoid(), 3, 0),
    "silu": (layers.SiLU(), 4, 0),
    "tanh": (layers.Tanh(), 3, 0),
    "gelu": (layers.GELU(), 10, 0),
    "gelu_tanh": (layers.GELU("tanh"), 4, 3),
    "hard_sigmoid": (layers.HardSigmoid(0.25, 0.5), 1, 1),
    "hard_swish": (layers.HardSwish(), 2, 1),
}
EXPECTED = {name: operator_reference.activation(op, X) for name, (op, _, _) in CASES.items()}


def allowed(name: str, expected: np.ndarray) -> np.ndarray:
    _, ulps, cancelling = CASES[name]
    x = np.abs(X.astype(np.float64))
    size = np.ones_like(x)
    if name == "hard_swish":
        size = x * (x < 4)
    if name == "gelu_tanh":
        # an error of the exponent is one of the result, relatively
        size = np.abs(expected) * np.minimum(2 * (x + 0.045 * x**3), 200)
    # half a unit of rounding; what is below the normal numbers may be zero, also within a product
    flushed = TINY * np.maximum(1, x * (x < 200))
    with np.errstate(over="ignore"):
        rounded = np.abs(expected.astype(np.float32)) * EPS
    return ulps * rounded + cancelling * EPS * size + flushed * (ulps > 0)


@pytest.mark.parametrize("name", CASES)
def test_every_float(isa: str, name: str) -> None:
    activation = activation_of(CASES[name][0])
    assert activation is not None
    with np.errstate(invalid="ignore", over="ignore"):
        expected, found = EXPECTED[name], activate(X, activation)
        limit = allowed(name, expected)
        same = (expected.astype(np.float32) == found) | (np.isnan(expected) & ~np.isfinite(found))
        error = np.abs(found - expected)
    wrong = np.flatnonzero(~(same | (error <= limit)))
    assert not wrong.size, (
        f"{isa} {name}: {wrong.size} wrong, first f({X[wrong[0]]!r}) = {found[wrong[0]]!r}, "
        f"expected {expected[wrong[0]]!r} within {limit[wrong[0]]!r}"
    )


def test_exp_is_right_to_the_last_place(isa: str) -> None:
    x = X[(X > -87) & (X < 88.7)]
    expected = np.exp(x.astype(np.float64))
    error = np.abs(activate(x, Activation("exp")) - expected) / np.spacing(expected.astype("f4"))
    assert error.max() <= 1, (isa, x[error.argmax()])
    ends = activate(
        np.array([-np.inf, -1e30, -104, 89, 1e30, np.inf], np.float32), Activation("exp")
    )
    assert ends.tolist() == [0, 0, 0, np.inf, np.inf, np.inf]


@pytest.mark.parametrize("name", CASES)
def test_nan_stays_nan_and_alone(isa: str, name: str) -> None:
    activation = activation_of(CASES[name][0])
    assert activation is not None
    for length in (1, 3, 17, 40):
        for place in {0, length // 2, length - 1}:
            x = np.linspace(-3, 3, length, dtype=np.float32)
            clean = activate(x, activation)
            x[place] = np.nan
            found = activate(x, activation)
            assert np.isnan(found[place])
            keep = np.arange(length) != place
            assert found[keep].tobytes() == clean[keep].tobytes()


def test_an_unknown_curve_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown activation curve 'softsign'; known: none"):
        activate(X[:4], Activation("softsign"))
    assert set(CURVES) == {"none", "exp"} | {
        found.curve for op, _, _ in CASES.values() if (found := activation_of(op))
    } | {"gelu_tanh"}
