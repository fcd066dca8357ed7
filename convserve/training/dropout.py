"""Dropout's random numbers: a hash of a key and the value's number, so that no mask is stored.

The compiled kernels (`csrc/train_pointwise.tmpl.h`) draw the same, each value on its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CounterRandom", "step_keys"]

DROPOUT_STREAM = 0xD209  # tells dropout's random numbers from others of the same seed


def step_keys(seed: int, step: int, count: int) -> NDArray[np.uint32]:
    """uint32[count, 2]: one key for each dropout layer of the step of that number."""
    words = np.random.SeedSequence([seed, DROPOUT_STREAM, step]).generate_state(2 * count)
    return np.ascontiguousarray(words.reshape(count, 2).astype(np.uint32))


class CounterRandom:
    """The uniform numbers of one step, layer after layer."""

    def __init__(self, seed: int, step: int) -> None:
        self._seed, self._step = seed, step
        self._drawn = 0

    def random(self, shape: tuple[int, ...], dtype: type[np.float32]) -> NDArray[np.float32]:
        """The next layer's, from 0 to 1 - 2⁻²⁴."""
        key = step_keys(self._seed, self._step, self._drawn + 1)[-1]
        self._drawn += 1
        numbers = np.arange(int(np.prod(shape)), dtype=np.uint32)
        bits = _hash(_hash(numbers + key[0]) ^ key[1])
        drawn: NDArray[np.float32] = (bits >> np.uint32(8)).astype(dtype) * dtype(2.0**-24)
        return drawn.reshape(shape)


def _hash(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """lowbias32: a bijection of 32 bits in which each bit of the result depends on all."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> np.uint32(15))
    h = h * np.uint32(0x846CA68B)
    mixed: NDArray[np.uint32] = h ^ (h >> np.uint32(16))
    return mixed
