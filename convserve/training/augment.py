"""Augmentation of raw pixels: uint8 [N, C, H, W] in, a new array of the same shape out."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["flip", "shift"]

Pixels = NDArray[np.uint8]


def shift(x: Pixels, pixels: int, rng: np.random.Generator) -> Pixels:
    """Each image moved by up to `pixels` up, down, left and right; zeros come in at the border."""
    count, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    # [N, C, 2p + 1, 2p + 1, H, W] without a copy: every shift of every image, to choose one from.
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    down, right = rng.integers(0, 2 * pixels + 1, (2, count))
    return np.ascontiguousarray(windows[np.arange(count), :, down, right])


def flip(x: Pixels, rng: np.random.Generator) -> Pixels:
    """Each image mirrored left to right with probability one half."""
    mirrored = rng.random(len(x)) < 0.5
    return np.where(mirrored[:, None, None, None], x[..., ::-1], x)
