"""A batch as the network sees it: raw pixels in, normalised images and target distributions out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convserve.datasets.base import Images, Selection
from convserve.errors import ShapeError
from convserve.kernels._augment import augment
from convserve.preprocessing import Preprocessing
from convserve.training.augment.config import AugmentConfig
from convserve.training.augment.draws import Draws
from convserve.training.augment.geometry import cutout_boxes, make_maps
from convserve.training.loss import smoothed_targets
from convserve.training.step import Array

__all__ = ["Augmenter", "batch"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
# ITU-R 601, as grey images are made everywhere here
LUMA = {"grey": (1.0,), "rgb": (0.299, 0.587, 0.114), "bgr": (0.114, 0.587, 0.299)}


class Augmenter:
    """Makes batches of one data set under one configuration; any number of threads may share it.

    x: uint8 [M, C, H, W], all the images, which may be a memory-mapped file. y: int64 [M].
    weights: float32 [classes], by which an image's target is multiplied (None: by 1).
    """

    def __init__(
        self,
        x: Images,
        y: Labels,
        classes: int,
        config: AugmentConfig,
        preprocessing: Preprocessing,
        weights: Array | None = None,
    ) -> None:
        self._rows: Labels | None = None
        if isinstance(x, Selection):  # images of a file: their rows in it
            self._rows, x = x.rows, x.base
        if x.ndim != 4 or x.shape[1] != preprocessing.channels:
            raise ShapeError(f"x must be [N, {preprocessing.channels}, H, W], got {x.shape}")
        # The kernel reads rows of adjacent pixels; files and plain arrays have them.
        self._x: Pixels = x if x.strides[3] == 1 else np.ascontiguousarray(x)
        self._y, self._classes, self._config = y, classes, config
        self._weights = weights
        self._table, self._luma = preprocessing.table(), np.array(LUMA[preprocessing.colour])
        self._factor, self._shift = preprocessing.factor, preprocessing.shift

    def batch(self, rows: Labels, epoch: int, out: Array | None = None) -> tuple[Array, Array]:
        """The images at `rows`, int64 [N], in an epoch (from 1), and their targets.

        Returns float32 [N, C, H, W] (in `out` if that is given) and float32 [N, classes], of which
        each row is a distribution over the classes.
        """
        rows = np.ascontiguousarray(rows, np.int64)
        if out is None:
            out = np.empty((len(rows), *self._x.shape[1:]), np.float32)
        draws = Draws(self._config.seed, epoch, rows)
        self._make(draws, rows, out)
        targets = self._targets(rows)
        if self._config.mixup:
            # A partner is any image of the data set, as it is in this epoch itself.
            partners = draws.integers("mixup partner", 0, len(self._y) - 1)
            share = draws.beta("mixup share", self._config.mixup).astype(np.float32)[:, None]
            other = np.empty_like(out)
            self._make(Draws(self._config.seed, epoch, partners), partners, other)
            _mix(out.reshape(len(rows), -1), other.reshape(len(rows), -1), share)
            _mix(targets, self._targets(partners), share)
        return out, targets

    def _make(self, draws: Draws, rows: Labels, out: Array) -> None:
        config = self._config
        size, (height, width) = len(rows), self._x.shape[2:]
        photometry = boxes = None
        if config.brightness or config.contrast:
            ranges = {"brightness": config.brightness, "contrast": config.contrast}
            factors = [draws.uniform(name, 1 - r, 1 + r) for name, r in ranges.items()]
            photometry = np.stack(factors, axis=1)
        if config.cutout:
            boxes = cutout_boxes(draws, config.cutout, height, width)
        augment(
            self._x,
            rows if self._rows is None else self._rows[rows],
            make_maps(draws, config, size, height, width),
            self._table,
            self._factor,
            self._shift,
            self._luma,
            out,
            photometry,
            boxes,
            config.padding_mode == "reflect",
        )

    def _targets(self, rows: Labels) -> Array:
        y = self._y[rows]
        targets = smoothed_targets(y, self._classes, self._config.label_smoothing)
        if self._weights is not None:
            targets *= self._weights[y, None]
        return targets


def batch(
    x: Images,
    y: Labels,
    rows: Labels,
    epoch: int,
    config: AugmentConfig,
    preprocessing: Preprocessing,
    classes: int | None = None,
) -> tuple[Array, Array]:
    """`Augmenter.batch` for a single batch. classes: None for those that y holds."""
    count = int(y.max(initial=-1)) + 1 if classes is None else classes
    return Augmenter(x, y, count, config, preprocessing).batch(rows, epoch)


def _mix(a: Array, b: Array, share: Array) -> None:
    """a becomes share · a + (1 - share) · b, in place; b is overwritten."""
    a *= share
    b *= np.float32(1.0) - share
    a += b
