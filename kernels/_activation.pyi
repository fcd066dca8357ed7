from typing import NamedTuple

from convserve.kernels._arguments import Float32Array

CURVES: dict[str, int]

class Activation(NamedTuple):
    curve: str = "none"
    a: float = 0.0
    b: float = 0.0
    low: float = ...
    high: float = ...

LINEAR: Activation

def activate(x: Float32Array, activation: Activation) -> Float32Array: ...
