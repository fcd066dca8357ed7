"""Crop, flip, rotation, zoom and shift as one affine map an image, from result to source.

    source ─ crop to the whole ─ flip ─ rotate, zoom about the centre ─ shift ─▶ result

A map says where in the source a pixel of the result lies, so it undoes the transforms from the last
to the first. Places are taken from the centre, where mirroring is a change of sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convserve.training.augment.config import AugmentConfig
from convserve.training.augment.draws import Draws, Numbers

__all__ = ["crop_boxes", "cutout_boxes", "make_maps", "mirrored"]

Values = NDArray[np.floating[Any]] | float  # an image's, or all images'

ATTEMPTS = 10  # torchvision's, before it takes the largest part of the aspect ratio


def make_maps(draws: Draws, config: AugmentConfig, size: int, height: int, width: int) -> Numbers:
    """float64 [size, 6]: the place (row i, column j) of the result lies in the source at column
    m0·j + m1·i + m2, row m3·j + m4·i + m5.
    """
    # The source's column is a·j + b·i + …, its row c·j + d·i + …; column by column, one number an
    # image or one for all, since small arrays cost more to shape than to compute.
    a: Values = 1.0
    b: Values = 0.0
    c, d = b, a
    if config.rotation or config.zoom:
        angle = np.deg2rad(draws.uniform("rotation", -config.rotation, config.rotation))
        scale = 1.0 / draws.uniform("zoom", 1.0 - config.zoom, 1.0 + config.zoom)
        a = d = scale * np.cos(angle)
        c = scale * np.sin(angle)
        b = -c
    if config.flip != "none":
        side = np.where(mirrored(draws, config, size), -1.0, 1.0)
        a, b = a * side, b * side
    # Where the centres lie: of what is kept, in the source, and where that goes, in the result.
    x: Values = (width - 1) / 2.0
    y: Values = (height - 1) / 2.0
    to_x, to_y = x, y
    if config.crop_scale < 1.0:
        top, left, bottom, right = crop_boxes(draws, config, size, height, width).T
        across, down = (right - left) / width, (bottom - top) / height
        a, b, c, d = a * across, b * across, c * down, d * down
        x, y = (left + right - 1) / 2.0, (top + bottom - 1) / 2.0
    if config.shift:
        to_x = to_x + draws.integers("shift right", -config.shift, config.shift)
        to_y = to_y + draws.integers("shift down", -config.shift, config.shift)
    maps = np.empty((size, 6))
    columns = (a, b, x - (a * to_x + b * to_y), c, d, y - (c * to_x + d * to_y))
    for k, column in enumerate(columns):
        maps[:, k] = column
    return maps


def mirrored(draws: Draws, config: AugmentConfig, size: int) -> NDArray[np.bool_]:
    """Which images are mirrored left to right."""
    if config.flip == "random":
        return draws.uniform("flip") < 0.5
    if config.flip == "alternating":
        return (draws.of_run().uniform("flip") < 0.5) ^ (draws.epoch % 2 == 0)
    return np.zeros(size, bool)


def crop_boxes(
    draws: Draws, config: AugmentConfig, size: int, height: int, width: int
) -> NDArray[np.int64]:
    """Top, left, bottom, right (exclusive) of the part that is kept, int64 [size, 4].

    As RandomResizedCrop: area and logarithm of the aspect ratio are uniform; where ten attempts
    give no part that fits in the image, it is the largest central one of the nearest ratio.
    """
    limit = np.log(config.crop_ratio)
    nearest = np.clip(width / height, 1.0 / config.crop_ratio, config.crop_ratio)
    w = np.full(size, min(width, round(height * nearest)))
    h = np.full(size, min(height, round(width / nearest)))
    top, left = (height - h) // 2, (width - w) // 2
    open_ = np.ones(size, bool)
    for attempt in range(ATTEMPTS):
        area = height * width * draws.uniform(f"crop area {attempt}", config.crop_scale, 1.0)
        ratio = np.exp(draws.uniform(f"crop ratio {attempt}", -limit, limit))
        tried_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        tried_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tried_w >= 1) & (tried_w <= width) & (tried_h >= 1) & (tried_h <= height)
        chosen = open_ & fits
        w[chosen], h[chosen] = tried_w[chosen], tried_h[chosen]
        open_ &= ~fits
    found = ~open_
    top[found] = draws.integers("crop top", 0, height - h)[found]
    left[found] = draws.integers("crop left", 0, width - w)[found]
    return np.stack([top, left, top + h, left + w], axis=1)


def cutout_boxes(draws: Draws, side: int, height: int, width: int) -> NDArray[np.int32]:
    """Top, left, bottom, right (exclusive) of squares whose centre lies anywhere in the image."""
    top = draws.integers("cutout row", 0, height - 1) - side // 2
    left = draws.integers("cutout column", 0, width - 1) - side // 2
    boxes = np.stack([top, left, top + side, left + side], axis=1)
    return np.clip(boxes, 0, [height, width, height, width]).astype(np.int32)
