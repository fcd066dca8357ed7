"""Random numbers that belong to an image: functions of (seed, epoch, image, what they are for).

A generator gives its numbers in order, so what an image gets would depend on which images came
before it, in which batches. A hash of the four has no order.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from convserve.kernels import _draws

__all__ = ["Draws", "beta_quantile"]

Numbers = NDArray[np.float64]
Rows = NDArray[np.int64]

_MASK = 2**64 - 1
_NODES = 4097  # of the tabulated quantile function


class Draws:
    """The draws of an epoch for the images at `rows`, int64 [N]; every method gives one an image.

    Each `name` is a stream of its own: the same name gives the same numbers again.
    """

    def __init__(self, seed: int, epoch: int, rows: Rows) -> None:
        self.epoch = epoch
        self._seed, self._rows = seed, np.ascontiguousarray(rows)
        self._key = _draws.mix(_folded(seed) ^ epoch)

    def of_run(self) -> Draws:
        """The draws that an image has once and for all epochs."""
        return Draws(self._seed, 0, self._rows)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Numbers:
        """float64 [N] in low <= value < high."""
        return _draws.uniform(self._rows, self._key, crc32(name.encode()), low, high)

    def integers(self, name: str, low: int, high: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [N] in low..high, both included; high may be one for each image."""
        if isinstance(high, np.ndarray):
            return low + np.floor(self.uniform(name) * (high - low + 1)).astype(np.int64)
        return _draws.integers(self._rows, self._key, crc32(name.encode()), low, high)

    def beta(self, name: str, alpha: float) -> Numbers:
        """float64 [N] of Beta(alpha, alpha)."""
        probabilities, values = beta_quantile(alpha)
        u = self.uniform(name)
        low = np.interp(np.minimum(u, 1.0 - u), probabilities, values)
        return np.where(u < 0.5, low, 1.0 - low)


@lru_cache(maxsize=8)
def beta_quantile(alpha: float) -> tuple[Numbers, Numbers]:
    """(P(X <= v), v) of X ~ Beta(alpha, alpha) for v from 0 to 1/2; the other half mirrors it.

    The density may be infinite at 0. With v = s^p / 2 and p = 1/alpha it is not, by s.
    """
    power = max(1.0, 1.0 / alpha)
    s = np.linspace(0.0, 1.0, _NODES)
    v = 0.5 * s**power
    density = s ** (power * alpha - 1.0) * (1.0 - v) ** (alpha - 1.0)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return 0.5 * below / below[-1], v


@lru_cache(maxsize=8)
def _folded(seed: int) -> int:
    """64 bits of a seed of any size."""
    folded = 0
    while seed:
        folded = _draws.mix(folded ^ (seed & _MASK))
        seed >>= 64
    return _draws.mix(folded)
