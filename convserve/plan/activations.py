"""Which activations a kernel applies as it stores: functions of one value without parameters."""

from __future__ import annotations

from math import inf

from convserve.graph import layers
from convserve.kernels._activation import LINEAR, Activation

__all__ = ["LINEAR", "Activation", "activation_of"]


def activation_of(op: layers.Operator) -> Activation | None:
    """The operator as bounds or a curve; None for what is no such function."""
    match op:
        case layers.ReLU():
            return Activation(low=0.0)
        case layers.Clip():
            low = -inf if op.low is None else op.low
            return Activation(low=low, high=inf if op.high is None else op.high)
        case layers.LeakyReLU():
            return Activation(op.op, op.slope)
        case layers.ELU():
            return Activation(op.op, op.alpha)
        case layers.HardSigmoid():
            return Activation(op.op, op.alpha, op.beta)
        case layers.GELU():
            return Activation("gelu_tanh" if op.approximate == "tanh" else "gelu")
        case layers.Sigmoid() | layers.HardSwish() | layers.SiLU() | layers.Tanh():
            return Activation(op.op)
    return None
