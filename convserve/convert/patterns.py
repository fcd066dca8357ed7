"""Arithmetic on layers, which knows the operators that are often written out as several nodes.

    x * sigmoid(x)                       SiLU
    x * clip(x + 3, 0, 6) / 6            HardSwish
    x * 0.5 * (1 + erf(x / sqrt 2))      GELU, and its tanh form
    (x - mean) / sqrt(var + eps)         LayerNorm over the channels
    x / (k + a · local mean of x²)^b     LRN
    a * (b * x + c) + d                  one ScaleShift, or nothing where it is the identity

Scales and shifts are kept in float64 until the end, so that factors which undo each other do.
"""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from convserve.convert.values import Array, Layer, Layers, Pending
from convserve.graph import layers as ops

__all__ = ["divide", "multiply", "power", "scale_shift", "square_root", "subtract"]

_CLOSE = 2e-6  # relative: what constants that were rounded to float32 once or twice may be off
_ROUNDED = 1e-12  # relative: what arithmetic in float64 may be off


def scale_shift(build: Layers, x: Layer, scale: Array | float, shift: Array | float = 0.0) -> Layer:
    """x · scale + shift, per channel or uniform."""
    scale = np.broadcast_to(np.asarray(scale, np.float64), (x.channels,))
    shift = np.broadcast_to(np.asarray(shift, np.float64), (x.channels,))
    root, inner_scale, inner_shift = _linear(x)
    scale, shift = scale * inner_scale, scale * inner_shift + shift
    if np.allclose(scale, 1.0, _CLOSE / 10, 0) and not shift.any():
        return root
    if root.is_a(ops.Clip):
        found = _hard_sigmoid(build, root, scale, shift)
        if found is not None:
            return found
    return build.add(ops.ScaleShift(), root, params={"scale": scale, "shift": shift})


def multiply(build: Layers, a: Layer, b: Layer) -> Layer:
    """a · b; one of them may be (C, 1, 1)."""
    if a is b:
        return build.add(Pending("square"), a)
    for x, gate in ((a, b), (b, a)):
        found = _activation(build, x, gate) if x.shape == gate.shape else None
        if found is not None:
            return found
        if gate.is_a("reciprocal_sqrt"):
            found = _layer_norm(build, x, gate.inputs[0])
            if found is not None:
                return found
        if gate.is_a("square") and gate.inputs[0] is x:
            return build.add(Pending("cube"), x)
    return build.add(ops.Mul(), a, b)


def subtract(build: Layers, a: Layer, b: Layer) -> Layer:
    """a - b, or the centred values that a layer norm begins with."""
    if b.is_a("mean") and b.inputs[0] is a:
        return build.add(Pending("centred"), a)
    return build.add(ops.Sub(), a, b)


def divide(build: Layers, a: Layer, b: Layer) -> Layer | None:
    """a / b where b is the standard deviation of a layer norm, or an LRN's power; else None."""
    if b.is_a("local_power"):
        return _lrn(build, a, b)
    return _layer_norm(build, a, b.inputs[0]) if b.is_a("sqrt") else None


def power(build: Layers, x: Layer, exponent: float) -> Layer | None:
    """x to that power, for the powers that patterns have."""
    if exponent == 1.0:
        return x
    if exponent == 0.5:
        return square_root(build, x)
    if exponent == -0.5:
        return build.add(Pending("reciprocal_sqrt"), x)
    if _linear(x)[0].is_a("local_mean"):
        return build.add(Pending("local_power", exponent=exponent), x)
    kind = {2.0: "square", 3.0: "cube"}.get(exponent)
    return None if kind is None else build.add(Pending(kind), x)


def square_root(build: Layers, x: Layer) -> Layer:
    return build.add(Pending("sqrt"), x)


def _linear(x: Layer) -> tuple[Layer, Array, Array]:
    """x as root · scale + shift."""
    if x.is_a(ops.ScaleShift):
        return x.inputs[0], x.params["scale"], x.params["shift"]
    return x, np.ones(x.channels), np.zeros(x.channels)


def _between(y: Layer, x: Layer) -> tuple[float, float] | None:
    """(a, b) of y = a · x + b with single numbers; None if it is not so."""
    (root, scale, shift), (x_root, x_scale, x_shift) = _linear(y), _linear(x)
    if root is not x_root or not x_scale.all():
        return None
    a = scale / x_scale
    b = shift - a * x_shift
    # What is left of a bias that both have is a rounding in float64: no offset.
    b[np.abs(b) <= _ROUNDED * np.abs(shift)] = 0.0
    for values in (a, b):
        if not np.allclose(values, values[0], _CLOSE, 1e-12):
            return None
    return float(a[0]), float(b[0])


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= _CLOSE * abs(wanted)


def _multiple(y: Layer, x: Layer) -> float | None:
    """a of y = a · x, or None."""
    found = _between(y, x)
    return None if found is None or found[1] else found[0]


def _activation(build: Layers, x: Layer, gate: Layer) -> Layer | None:
    """The activation x · gate(x), or None."""
    root, scale, shift = _linear(gate)
    if not root.inputs or not (np.ptp(scale) == 0 and np.ptp(shift) == 0):
        return None
    factor, offset, inner = float(scale[0]), float(shift[0]), root.inputs[0]
    if root.is_a(ops.Sigmoid) and offset == 0:
        return _silu(build, x, inner, factor)
    if isinstance(root.op, ops.HardSigmoid) and offset == 0:
        ramp = _between(inner, x)
        if ramp is not None:
            slope, start = root.op.alpha * ramp[0], root.op.alpha * ramp[1] + root.op.beta
            if _near(slope, 1 / 6) and _near(start, 0.5):
                return scale_shift(build, build.add(ops.HardSwish(), x), factor)
    if isinstance(root.op, ops.Clip) and offset == 0 and root.op.low == 0 and root.op.high:
        ramp, high = _between(inner, x), root.op.high
        if ramp is not None and _near(ramp[0] / high, 1 / 6) and _near(ramp[1] / high, 0.5):
            return scale_shift(build, build.add(ops.HardSwish(), x), factor * high)
    if _near(factor, offset):  # factor · (1 + erf or tanh)
        if root.is_a("erf"):
            w = scale_shift(build, inner, sqrt(2.0))
            return _gelu(build, x, w, "none", factor)
        if root.is_a(ops.Tanh):
            cubic = _cubic(build, inner)
            return None if cubic is None else _gelu(build, x, cubic, "tanh", factor)
    return None


def _silu(build: Layers, x: Layer, inner: Layer, factor: float) -> Layer | None:
    """x · factor · sigmoid(k x) = factor / k · SiLU(k x)."""
    k = _multiple(inner, x)
    if not k:
        return None
    argument = x if _near(k, 1.0) else inner
    return scale_shift(build, build.add(ops.SiLU(), argument), factor / k)


def _gelu(build: Layers, x: Layer, w: Layer, approximate: str, factor: float) -> Layer | None:
    """x · factor · (1 + erf(w / sqrt 2)) = 2 factor · x / w · GELU(w), where x is a multiple."""
    ratio = _multiple(x, w)
    if ratio is None:
        return None
    argument = x if _near(ratio, 1.0) else w
    return scale_shift(build, build.add(ops.GELU(approximate), argument), 2 * factor * ratio)


def _cubic(build: Layers, inner: Layer) -> Layer | None:
    """w of inner = sqrt(2 / pi) (w + 0.044715 w³), or None."""
    root, scale, shift = _linear(inner)
    if not root.is_a(ops.Add) or shift.any() or not np.allclose(scale, sqrt(2 / pi), _CLOSE):
        return None
    for w, term in (root.inputs, root.inputs[::-1]):
        cube, factor, offset = _linear(term)
        if cube.is_a("cube") and cube.inputs[0] is w and not offset.any():
            return w if np.allclose(factor, 0.044715, _CLOSE) else None
    return None


def _hard_sigmoid(build: Layers, clip: Layer, scale: Array, shift: Array) -> Layer | None:
    """clip(a x + b, 0, h) / h as HardSigmoid(a / h, b / h)."""
    assert isinstance(clip.op, ops.Clip)
    inner = clip.inputs[0]
    if clip.op.low != 0 or not clip.op.high or shift.any() or not inner.is_a(ops.ScaleShift):
        return None
    root, slope, start = _linear(inner)
    ends = scale * clip.op.high
    if np.ptp(slope) or np.ptp(start) or not np.allclose(ends, 1.0, _CLOSE):
        return None
    op = ops.HardSigmoid(float(slope[0] / clip.op.high), float(start[0] / clip.op.high))
    return build.add(op, root)


def _lrn(build: Layers, x: Layer, power: Layer) -> Layer | None:
    """x / (bias + alpha · mean of x² over channels)^beta, as PyTorch writes it out."""
    assert isinstance(power.op, Pending)
    mean, scale, shift = _linear(power.inputs[0])
    padded = mean.inputs[0]
    if not isinstance(mean.op, Pending) or not isinstance(padded.op, Pending):
        return None
    size, square = mean.op.size, padded.inputs[0]
    sides = padded.op.before, padded.op.after
    if padded.op.kind != "padded" or sides != ((size - 1) // 2, size // 2):
        return None
    if not square.is_a("square") or square.inputs[0] is not x or np.ptp(scale) or np.ptp(shift):
        return None
    lrn = ops.LRN(size, float(scale[0]), power.op.exponent, float(shift[0]))
    return build.add(lrn, x)


def _layer_norm(build: Layers, centred: Layer, variance: Layer) -> Layer | None:
    """(x - mean) / sqrt(mean((x - mean)²) + eps), if these are that."""
    root, scale, shift = _linear(variance)
    if not centred.is_a("centred") or not root.is_a("mean") or not _near(float(scale[0]), 1.0):
        return None
    square = root.inputs[0]
    if not square.is_a("square") or square.inputs[0] is not centred or not shift[0] > 0:
        return None
    x = centred.inputs[0]
    weight, bias = np.ones(x.channels), np.zeros(x.channels)
    return build.add(ops.LayerNorm(float(shift[0])), x, params={"weight": weight, "bias": bias})
