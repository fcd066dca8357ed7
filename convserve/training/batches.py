"""The batches of an epoch, shuffled and augmented, made while the network learns from earlier ones.

order of (seed, epoch) ─▶ rows of job k ─▶ Augmenter, in a thread without the GIL ─▶ steps
                               job k + 2 is made while k's batches are learnt
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from convserve.datasets import Split
from convserve.preprocessing import Preprocessing
from convserve.training.augment import Augmenter
from convserve.training.config import TrainConfig
from convserve.training.step import Array

__all__ = ["Batches"]

SHUFFLE_STREAM = 1  # tells this random stream of a seed and epoch from others
AHEAD = 2  # jobs that are begun before their batches are asked for
JOB_BYTES = 2 * 2**20  # of images in a job: small batches are made several at a time


class Batches:
    """The training images in batches of `config.batch_size`; the last one holds what is left.

    With `config.drop_last` only whole batches are made. weights: factors of the targets, float32
    [classes], by which an image's loss counts.
    """

    def __init__(
        self,
        split: Split,
        classes: int,
        config: TrainConfig,
        preprocessing: Preprocessing,
        weights: Array | None = None,
    ) -> None:
        self._images, self._config = len(split), config
        self._augmenter = Augmenter(split.x, split.y, classes, config, preprocessing, weights)
        self._shape = split.x.shape[1:]

    def __len__(self) -> int:
        """Batches an epoch."""
        count = self._images / self._config.batch_size
        return int(count) if self._config.drop_last else ceil(count)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Array, Array]]:
        """The epoch's batches (epochs count from 1), from batch `first` (from 0) on.

        Yields x float32 [N, C, H, W] and targets float32 [N, classes]. Every image comes once, in
        an order of (seed, epoch). The arrays are reused: they hold until the next batch is taken.
        """
        rng = np.random.default_rng([self._config.seed, SHUFFLE_STREAM, epoch])
        order, size = rng.permutation(self._images), self._config.batch_size
        image_bytes = 4 * prod(self._shape)
        together = max(1, JOB_BYTES // max(image_bytes * size, 1)) * size  # images
        end = min(len(self) * size, self._images)
        starts = range(first * size, end, together)
        buffers = np.empty((AHEAD + 1, min(together, self._images), *self._shape), np.float32)

        def make(job: int) -> tuple[Array, Array]:
            rows: NDArray[np.int64] = order[starts[job] : min(starts[job] + together, end)]
            out = buffers[job % len(buffers), : len(rows)]
            return self._augmenter.batch(rows, epoch, out)

        pending: deque[Future[tuple[Array, Array]]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix="augment")
        try:
            for job in range(len(starts) + AHEAD):
                if job < len(starts):
                    pending.append(pool.submit(make, job))
                if job >= AHEAD:
                    x, targets = pending.popleft().result()
                    for at in range(0, len(x), size):
                        yield x[at : at + size], targets[at : at + size]
        finally:
            pool.shutdown(cancel_futures=True)
