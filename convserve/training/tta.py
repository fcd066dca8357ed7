"""Test-time augmentation: an image's scores averaged over a few views of it.

    none         the image
    flip         1/2 image, 1/2 its mirror image
    shift        1/2 image, 1/4 moved up and left by a pixel, 1/4 moved down and right
    flip+shift   each of those three, half itself and half mirrored: six views

Borders are mirrored where a shift needs pixels that are not there. Digits and letters are other
signs when they are mirrored: take shift for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convserve.errors import UnknownNameError

__all__ = ["TTA", "predict_views"]

TTA = ("none", "flip", "shift", "flip+shift")
MOVES = (((0, 0), 0.5), ((-1, -1), 0.25), ((1, 1), 0.25))  # (down, right) and weight

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]


def predict_views(
    predict: Callable[[Pixels], Scores], x: Pixels, tta: str, probabilities: bool
) -> Scores:
    """float32 [N, K]: the weighted mean of `predict` over views of x, uint8 [N, C, H, W].

    probabilities: whether `predict` ends in a softmax. Then the mean is that of the logits: the
    result is the softmax of it. Else scores are averaged as they are.
    Raises UnknownNameError for another `tta` than one of TTA.
    """
    if tta not in TTA:
        raise UnknownNameError(f"tta must be one of {', '.join(TTA)}, not {tta!r}")
    if tta == "none":
        return predict(x)
    total: NDArray[np.float64] = np.zeros(0)
    for view, weight in _views(x, tta):
        scores = predict(view).astype(np.float64)
        if probabilities:
            # Logits up to a constant, which a softmax does not see.
            scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
        total = weight * scores + (total if total.size else 0.0)
    if probabilities:
        total = np.exp(total - total.max(axis=1, keepdims=True, initial=-np.inf))
        total /= total.sum(axis=1, keepdims=True)
    return total.astype(np.float32)


def _views(x: Pixels, tta: str) -> list[tuple[Pixels, float]]:
    views = [(_moved(x, *move), weight) for move, weight in MOVES] if "shift" in tta else [(x, 1.0)]
    if "flip" in tta:
        halves = [(view, 0.5 * weight) for view, weight in views]
        mirrored = [(np.ascontiguousarray(view[..., ::-1]), weight) for view, weight in halves]
        views = halves + mirrored
    return views


def _moved(x: Pixels, down: int, right: int) -> Pixels:
    if not down and not right:
        return x
    height, width = x.shape[2:]
    mode: Literal["reflect", "edge"] = "reflect" if min(height, width) > 1 else "edge"
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode)
    top, left = 1 - down, 1 - right
    return np.ascontiguousarray(padded[:, :, top : top + height, left : left + width])
