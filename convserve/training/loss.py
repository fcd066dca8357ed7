"""Cross-entropy between softmax scores and target distributions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convserve.training.step import Array

__all__ = ["cross_entropy", "smoothed_targets"]


def smoothed_targets(y: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> Array:
    """Target distributions float32 [N, classes]: 1 - smoothing at y, plus smoothing / classes."""
    targets = np.full((len(y), classes), smoothing / classes, np.float32)
    targets[np.arange(len(y)), y] += np.float32(1.0 - smoothing)
    return targets


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Mean of -Σ targets · log softmax(logits) over the batch, and its gradient by the logits.

    Softmax and logarithm in one, since together they are stable and the gradient is just
    (softmax(logits) - targets) / N. A loss that isn't finite is returned as it is.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        totals = exponentials.sum(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(totals)
        loss = -float((targets * log_probabilities).sum(dtype=np.float64)) / len(logits)
        grad = (exponentials / totals - targets) / len(logits)
    return loss, grad
