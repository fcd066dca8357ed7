"""Cross-entropy between softmax scores and target distributions, and the targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convserve.errors import TrainingError
from convserve.training.step import Array

__all__ = ["class_weights", "cross_entropy", "smoothed_targets"]


def smoothed_targets(y: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> Array:
    """Target distributions float32 [N, classes]: 1 - smoothing at y, plus smoothing / classes."""
    targets = np.full((len(y), classes), smoothing / classes, np.float32)
    targets[np.arange(len(y)), y] += np.float32(1.0 - smoothing)
    return targets


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Mean of -Σ targets · log softmax(logits) over the batch, and its gradient by the logits.

    Softmax and logarithm in one, since together they are stable and the gradient is just
    (softmax(logits) · Σ targets - targets) / N. The targets of an image sum to its weight, which
    mostly is 1. A loss that isn't finite is returned as it is.
    """
    weights = targets.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        totals = exponentials.sum(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(totals)
        loss = -float((targets * log_probabilities).sum(dtype=np.float64)) / len(logits)
        grad = (exponentials * (weights / totals) - targets) / len(logits)
    return loss, grad


def class_weights(
    weights: str | Sequence[float] | None, y: NDArray[np.int64], labels: Sequence[str]
) -> Array | None:
    """The weight of each class's images, float32 [K], scaled to a mean of 1 over the images of `y`.

    "balanced": the inverse of how many images a class has. None: all equal. Raises TrainingError
    for another number of weights than of classes.
    """
    if weights is None:
        return None
    counts = np.bincount(y, minlength=len(labels))
    if isinstance(weights, str):
        given = 1.0 / np.maximum(counts, 1)
    else:
        if len(weights) != len(labels):
            raise TrainingError(
                f"class_weights has {len(weights)} values, there are {len(labels)} classes"
            )
        given = np.asarray(weights, np.float64)
    total = float(given @ counts)
    if not total > 0:
        raise TrainingError("class_weights are 0 for every class that has images")
    scaled: Array = (given * (counts.sum() / total)).astype(np.float32)
    return scaled
