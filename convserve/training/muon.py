"""The nearest matrix with orthonormal rows or columns, by Newton and Schulz's iteration."""

from __future__ import annotations

from math import sqrt

import numpy as np

from convserve import kernels
from convserve.training.step import Array

__all__ = ["orthogonalised"]

# An odd polynomial a x + b x³ + c x⁵ whose iterates bring singular values from (0, 1] to about 1
# (0.7 to 1.2): it rises steeply at 0, so that three rounds are enough for training.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 3
EPS = 1e-7


def orthogonalised(x: Array, rounds: int = ROUNDS) -> Array:
    """U Vᵀ of x = U S Vᵀ, roughly: float32 [rows, columns] -> new float32 of that shape.

    Products run on our own kernel: its bits don't depend on the number of threads.
    """
    wide = x if x.shape[0] <= x.shape[1] else x.T  # the products are of the shorter side
    norm = sqrt(float(np.square(wide, dtype=np.float64).sum()))
    y = np.ascontiguousarray(wide) * np.float32(1.0 / (norm + EPS))
    for _ in range(rounds):
        gram = kernels.affine(y, y)  # y yᵀ
        # Symmetric, so that `affine`, which multiplies by a transpose, multiplies by it.
        weights = np.float32(B) * gram + np.float32(C) * kernels.affine(gram, gram)
        y = np.float32(A) * y + kernels.affine(weights, np.ascontiguousarray(y.T))
    return y if wide is x else np.ascontiguousarray(y.T)
